"""Pictures of a trained adapter as files.

```
OUT/
    meta.json            what they were made with; another OUT is needed for anything else
    sample_0000/         appears by one rename, when it is complete
        gen_0.jpg, gen_1.jpg, …
        grid.jpg         the same side by side
        best.jpg         the one that a CLIP prefers, where it was asked; gen_0 is the first seed whatever it prefers
        references.jpg   the history and the target, where they are known
        info.json        user, target, seeds, mode, keywords, adapter: enough to make the same pictures again
```
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import Field, model_validator

from sensorium import config as configuration
from sensorium import reading
from sensorium.config import Section
from sensorium.data.media import load_image
from sensorium.data.tastes import Liked, Taste
from sensorium.engine.contract import Host
from sensorium.errors import ConfigError, DataError
from sensorium.families.pmg.choosing import ALPHA, Chooser
from sensorium.families.pmg.config import DrawMode, Mode
from sensorium.families.pmg.diffusion import SchedulerName
from sensorium.families.pmg.painting import CAPTION_ONLY, Painter, Wish, side_by_side
from sensorium.families.pmg.preferences import SAID, Preference, Rule, captions
from sensorium.families.pmg.sampling import Sampling, picture_seed
from sensorium.files import new_file, new_folder, open_file, remove_leftovers, write_by_library, write_json

META, INFO, BEST = "meta.json", "info.json", "best.jpg"
_FORMAT = 2
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
    select: bool = Field(False, description="Let a CLIP choose the best picture of each sample.")
    clip: str | None = Field(None, min_length=1, description="The CLIP that selects; null: that of the model.")
    alpha: float | None = Field(None, ge=0, le=1, description="Share of the taste in that choice; null: 2/3.")
    keywords: Rule = Field(
        "auto",
        description="Words of the taste: `file`: those that came with the data; `history`: asked of the language model "
        "about the sample's own history; `auto`: the first where there are some; `off`: none.",
    )
    num_keywords: int | None = Field(None, ge=1, le=32, description="Keywords to ask for; null: 8.")
    preferences: str | None = Field(None, min_length=1, description="JSON with the style text of users.")
    target_text: Literal["caption", "keywords"] = Field(
        "caption", description="What is drawn: the target's caption, or 5 of 10 keywords that the language model makes."
    )
    weighting: Literal["scale", "repeat"] = Field(
        "scale",
        description="How a weight of the words works: it multiplies their states, or they stand there so often.",
    )
    preference_weights: tuple[float, ...] = Field(
        (), max_length=8, description="Weights of the words, a candidate of each; none: the one of the model."
    )
    image_dir: str | None = Field(None, min_length=1, description="Put before relative paths of pictures.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="Where to compute.")

    @model_validator(mode="after")
    def _used(self) -> DrawConfig:
        given = next((name for name in ("clip", "alpha") if getattr(self, name) is not None), None)
        if given and not self.select:
            raise ValueError(f"{given} has no effect without select")
        if self.num_keywords is not None and self.keywords in ("file", "off"):
            raise ValueError(f"num_keywords has no effect with keywords {self.keywords}")
        if self.preferences is not None and self.keywords in ("history", "off"):
            raise ValueError(f"preferences have no effect with keywords {self.keywords}")
        if self.weighting == "repeat" and not self.preference_weights:
            raise ValueError("weighting repeat needs preference_weights, such as 1,2")
        most = 8 if self.weighting == "repeat" else 10
        for one in self.preference_weights:
            if not 0 <= one <= most or (self.weighting == "repeat" and (one < 1 or one % 1)):
                kind = "whole numbers from 1 to 8" if self.weighting == "repeat" else "0 to 10"
                raise ValueError(f"preference_weights {one:g}: allowed with weighting {self.weighting} are {kind}")
        return self

    @property
    def many_steps(self) -> int:
        """Denoising steps."""
        return self.steps or _STEPS[self.scheduler]

    @property
    def candidates(self) -> int:
        """Pictures of a sample: seeds times weights."""
        return self.images * max(1, len(self.preference_weights))

    @property
    def taste_share(self) -> float:
        """Alpha of the choice."""
        return ALPHA if self.alpha is None else self.alpha


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
        if out.is_dir():
            remove_leftovers(out)  # of this very file, half written
        if out.is_dir() and any(out.iterdir()):
            raise ConfigError(f"{out}: is not empty and has no {META}; --out takes a new folder")
        with new_file(path) as temporary, open_file(temporary, "wb") as file:
            file.write((json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())
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


def wishes_of(taste: Taste, how: DrawConfig, mode: DrawMode, words: Preference | None = None) -> list[Wish]:
    """The pictures of a sample: for each seed one of each weight. ``words``: of the taste; None: its style."""
    given = Preference.supplied(taste.style) if words is None else words
    repeated = how.weighting == "repeat"
    weights: Sequence[float | None] = how.preference_weights or (None,)
    return [
        Wish(
            captions(taste),
            given.target or taste.target.caption,
            given.text(int(weight) if repeated and weight else 1),
            seed,
            mode,
            None if repeated else weight,
        )
        for seed in seeds_of(taste, how)
        for weight in weights
    ]


@dataclass(frozen=True)
class Job:
    """Where to draw and how. ``meta``: what ``meta.json`` says; ``chooser``: of the best picture, if one is wanted."""

    out: Path
    how: DrawConfig
    meta: Mapping[str, Any]
    chooser: Chooser | None = None

    def wishes(self, taste: Taste, words: Preference) -> list[Wish]:
        """The pictures of a sample."""
        return wishes_of(taste, self.how, self.meta["mode"], words)


def info_of(taste: Taste, words: Preference, number: int, job: Job) -> dict[str, Any]:
    """The content of ``info.json``, but for the choice."""
    wishes = job.wishes(taste, words)
    return {
        "sample_idx": number,
        "user_id": taste.user,
        "target_item_id": taste.target.id,
        "target_caption": taste.target.caption,
        "num_generated": len(wishes),
        "seeds": [wish.seed for wish in wishes],
        "styles": [wish.style for wish in wishes],
        "style_scales": [wish.scale for wish in wishes],
        "history_captions": list(captions(taste)),
        "user_style": taste.style,
        "keywords": list(words.words),
        "keywords_from": SAID[words.origin],
        "keywords_note": words.note,
        "raw_answer": words.raw,
        "target_text": wishes[0].target,
        "target_raw_answer": words.target_raw,
        "scores": None,
        "chosen_image": None,
        "scorer": None,
        **{name: job.meta[name] for name in ("mode", "weights", "negative_prompt", "adapter_digest", "drawing")},
    }


def draw_all(
    painter: Painter,
    samples: Mapping[int, tuple[Taste, Preference]],
    soft: Mapping[tuple[str, ...], Any],
    job: Job,
    host: Host,
) -> None:
    """Draw samples, by their numbers; each is there as soon as it is complete."""
    how, numbers = job.how, list(samples)
    together = max(1, how.batch // how.candidates)
    with host.progress("draw", len(numbers)) as advance:
        for start in range(0, len(numbers), together):
            some = numbers[start : start + together]
            wishes = [wish for number in some for wish in job.wishes(*samples[number])]
            pictures = list(painter.paint(wishes, soft, str(job.meta["negative_prompt"]), how.batch))
            for place, number in enumerate(some):
                own = pictures[place * how.candidates : (place + 1) * how.candidates]
                _write_sample(number, own, samples[number], job)
            advance(start + len(some), len(numbers))


def _write_sample(number: int, pictures: Sequence[Image.Image], sample: tuple[Taste, Preference], job: Job) -> None:
    taste, words = sample
    info = info_of(taste, words, number, job)
    if job.chooser is not None:
        info |= job.chooser.told(job.chooser.scores(pictures, words.words, info["target_text"]))
    side = pictures[0].width
    known = [load_image(liked.path) for liked in (*taste.history, taste.target) if _is_known(liked)]
    with new_folder(folder_of(job.out, number)) as new:
        for place, picture in enumerate(pictures):
            _write_jpeg(new / f"gen_{place}.jpg", picture)
        _write_jpeg(new / "grid.jpg", side_by_side(pictures, side))
        if known:
            _write_jpeg(new / "references.jpg", side_by_side(known, side))
        if job.chooser is not None:
            _write_jpeg(new / BEST, pictures[info["chosen_image"]])
        write_json(new / INFO, info)


def read_info(folder: Path) -> tuple[list[Wish], Sampling, Mapping[str, Any]]:
    """What made the pictures in a sample's folder: the wishes, how they were sampled, and all of ``info.json``.
    Raises DataError."""
    path = folder / INFO
    try:
        info = reading.parse_json(reading.read_bytes(path))
        rows = zip(info["seeds"], info["styles"], info["style_scales"], strict=True)
        history, target, mode = tuple(info["history_captions"]), info["target_text"], info["mode"]
        wishes = [Wish(history, target, style, int(seed), mode, scale) for seed, style, scale in rows]
        how = info["drawing"]
        given = {"mode": mode, **{name: how[name] for name in ("steps", "guidance", "scheduler")}}
        checked = read_how(given)
        sampling = Sampling(int(how["pixels"]), checked.many_steps, checked.guidance, checked.scheduler)
        _ = info["adapter_digest"], info["negative_prompt"], info["weights"]
    except (OSError, ValueError, TypeError, LookupError, ConfigError) as error:
        raise DataError(f"{path}: does not say how its pictures were made ({error})") from error
    return wishes, sampling, info


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
