"""Pictures of a trained adapter as files.

```
OUT/
    meta.json            what they were made with; another OUT is needed for anything else
    sample_0000/         appears by one rename, when it is complete
        gen_0.jpg, gen_1.jpg, …
        grid.jpg         the same side by side
        references.jpg   the history and the target, where they are known
        info.json        user, target, seeds, mode, adapter: enough to make the same pictures again
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from sensorium import config as configuration
from sensorium import reading
from sensorium.config import Section
from sensorium.data.media import load_image
from sensorium.data.tastes import Liked, Taste
from sensorium.engine.contract import Host
from sensorium.errors import ConfigError, DataError
from sensorium.families.pmg.config import DrawMode, Mode
from sensorium.families.pmg.diffusion import SchedulerName
from sensorium.families.pmg.painting import CAPTION_ONLY, Painter, Wish, side_by_side
from sensorium.families.pmg.sampling import picture_seed
from sensorium.files import make_folder, new_folder, remove_leftovers, write_by_library, write_json

META, INFO = "meta.json", "info.json"
_FORMAT = 1
_STEPS: Mapping[str, int] = {"ddim": 50, "ddpm": 50, "dpmsolver": 25}
_QUALITY = 95


class DrawConfig(Section):
    """How to draw."""

    images: int = Field(1, ge=1, le=64, description="Pictures of each sample.")
    mode: DrawMode | None = Field(None, description="Conditioning; null: that of training.")
    negative: str | None = Field(None, description="What pictures shall not be; null: that of the data set.")
    steps: int | None = Field(None, ge=1, le=1000, description="Denoising steps; null: 50, with dpmsolver 25.")
    guidance: float = Field(6.0, ge=1, le=100, description="Classifier-free guidance; 1: none.")
    scheduler: SchedulerName = Field("ddim", description="How noise is taken away.")
    seed: int = Field(42, ge=0, lt=2**62, description="Of the noise.")
    seed_rule: Literal["identity", "shared"] = Field(
        "identity", description="Noise by user, target and number; or `shared`: seed + number for all."
    )
    batch: int = Field(8, ge=1, le=1024, description="Pictures made at a time.")
    image_dir: str | None = Field(None, min_length=1, description="Put before relative paths of pictures.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="Where to compute.")

    @property
    def many_steps(self) -> int:
        """Denoising steps."""
        return self.steps or _STEPS[self.scheduler]


def read_how(given: Mapping[str, Any]) -> DrawConfig:
    """Raises ConfigError that lists every problem."""
    return configuration.build(DrawConfig, given, "generate")


def seeds_of(taste: Taste, how: DrawConfig) -> list[int]:
    """Of a sample's pictures."""
    shared = how.seed_rule == "shared"
    return [picture_seed(how.seed, taste.user, taste.target.id, number, shared=shared) for number in range(how.images)]


def write_meta(out: Path, content: Mapping[str, Any]) -> None:
    """Begin a folder of pictures, or go on in one. Raises ConfigError where its pictures were made otherwise."""
    whole = {"format": _FORMAT, **content}
    path = out / META
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise ConfigError(f"{out}: is not empty and has no {META}; --out takes a new folder")
        make_folder(out)
        write_json(path, whole)
        return
    try:
        found = reading.parse_json(reading.read_bytes(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    before = found if isinstance(found, dict) else {}
    other = sorted(key for key in before.keys() | whole.keys() if before.get(key) != whole.get(key))
    if other:
        raise ConfigError(f"{out}: its pictures were made with another {', '.join(other)}; --out takes a new folder")


def missing(out: Path, count: int) -> list[int]:
    """Numbers of samples that are not complete."""
    remove_leftovers(out)
    return [number for number in range(count) if not (folder_of(out, number) / INFO).is_file()]


def folder_of(out: Path, number: int) -> Path:
    """Of a sample."""
    return out / f"sample_{number:04}"


def wishes_of(taste: Taste, how: DrawConfig, mode: DrawMode) -> list[Wish]:
    """The pictures of a sample."""
    captions = tuple(liked.caption for liked in taste.history)
    return [Wish(captions, taste.target.caption, taste.style, seed, mode) for seed in seeds_of(taste, how)]


def info_of(taste: Taste, number: int, how: DrawConfig, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``info.json``."""
    return {
        "sample_idx": number,
        "user_id": taste.user,
        "target_item_id": taste.target.id,
        "target_caption": taste.target.caption,
        "num_generated": how.images,
        "seeds": seeds_of(taste, how),
        "history_captions": [liked.caption for liked in taste.history],
        "user_style": taste.style,
        "keywords": [],
        "raw_answer": None,
        "scores": None,
        "chosen_image": None,
        **{name: meta[name] for name in ("mode", "weights", "negative_prompt", "adapter_digest", "drawing")},
    }


def draw_all(
    painter: Painter,
    tastes: Sequence[Taste],
    soft: Mapping[tuple[str, ...], Any],
    target: tuple[Path, DrawConfig, Mapping[str, Any]],
    host: Host,
) -> None:
    """Draw what is missing in a folder. ``target``: the folder, how to draw, and what ``meta.json`` says."""
    out, how, meta = target
    numbers = missing(out, len(tastes))
    if len(numbers) < len(tastes):
        host.say(f"{out}: {len(tastes) - len(numbers)} of {len(tastes)} samples are there already")
    together = max(1, how.batch // how.images)
    with host.progress("draw", len(numbers)) as advance:
        for start in range(0, len(numbers), together):
            some = numbers[start : start + together]
            wishes = [wish for number in some for wish in wishes_of(tastes[number], how, meta["mode"])]
            pictures = list(painter.paint(wishes, soft, str(meta["negative_prompt"]), how.batch))
            for place, number in enumerate(some):
                own = pictures[place * how.images : (place + 1) * how.images]
                _write_sample(folder_of(out, number), own, tastes[number], info_of(tastes[number], number, how, meta))
            advance(start + len(some), len(numbers))


def _write_sample(folder: Path, pictures: Sequence[Image.Image], taste: Taste, info: Mapping[str, Any]) -> None:
    side = pictures[0].width
    known = [load_image(liked.path) for liked in (*taste.history, taste.target) if _is_known(liked)]
    with new_folder(folder) as new:
        for number, picture in enumerate(pictures):
            _write_jpeg(new / f"gen_{number}.jpg", picture)
        _write_jpeg(new / "grid.jpg", side_by_side(pictures, side))
        if known:
            _write_jpeg(new / "references.jpg", side_by_side(known, side))
        write_json(new / INFO, info)


def _is_known(liked: Liked) -> bool:
    """A target that was only asked for has no picture."""
    return liked.path != Path()


def _write_jpeg(path: Path, picture: Image.Image) -> None:
    write_by_library(path, lambda temporary: picture.save(temporary, "JPEG", quality=_QUALITY))


def mode_of(how: DrawConfig, trained: Mode, host: Host) -> DrawMode:
    """The conditioning to draw with; another one than that of training is said."""
    mode = how.mode or trained
    if mode not in (trained, CAPTION_ONLY):
        host.say(f"conditioning {mode}, not {trained} as in training")
    return mode
