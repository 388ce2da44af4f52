"""One table: pictures of an adapter beside those of other ways to make them, for the same samples, with the same noise.

```
OUT/
    none/  keywords/  soft/  pmg/  other_user/  textual_inversion/  ip_adapter/     as drawing.py writes them
    vectors/             of textual_inversion, one a user
    evaluation.json      every number, by row and by sample
```
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import Field, model_validator

from sensorium import reading
from sensorium.config import Section
from sensorium.data.media import load_image
from sensorium.data.tastes import Taste
from sensorium.engine.contract import Evaluation, Host
from sensorium.engine.seeds import generator
from sensorium.errors import ConfigError, DataError
from sensorium.families.pmg import board as boards
from sensorium.families.pmg.board import Board
from sensorium.families.pmg.config import DrawMode
from sensorium.families.pmg.drawing import INFO, DrawConfig, folder_of
from sensorium.families.pmg.encoders import Resize
from sensorium.families.pmg.inversion import pictures_of
from sensorium.families.pmg.ip_adapter import weights_file
from sensorium.families.pmg.judges import Judges, open_judges
from sensorium.families.pmg.judging import Judging, Show, common, unreadable
from sensorium.families.pmg.sampling import device_of
from sensorium.files import make_folder, write_json

Row = Literal[
    *("none", "keywords", "soft", "pmg", "textual_inversion", "ip_adapter"),
    *("other_user", "copy_history", "oracle_target"),
]
RESULTS = "evaluation.json"
MODES: Mapping[str, DrawMode] = {
    "none": "caption_only",
    "keywords": "keywords",
    "soft": "target_soft",
    "pmg": "target_soft_style",
    "other_user": "target_soft_style",
}
STYLED = ("pmg", "keywords")  # rows that are told the words of the sample's own taste
_FORMAT = 1


class JudgeConfig(Section):
    """Who judges, and what of."""

    clip: str | None = Field(None, min_length=1, description="CLIP of the metrics; null: model.clip, if it is there.")
    weights_dir: str | None = Field(None, min_length=1, description="Folder of the judges' downloaded weights.")
    allow_missing: bool = Field(False, description="Judge the samples of which no picture is missing, in every row.")


class InversionConfig(Section):
    """Textual inversion (Gal et al. 2022): one word vector of a user."""

    steps: int = Field(500, ge=1, le=100_000, description="Steps of training for a user.")
    lr: float = Field(5e-3, gt=0, le=10, description="Learning rate.")
    batch: int = Field(4, ge=1, le=256, description="Pictures of a step.")


class CompareConfig(Section):
    """What to compare, how to draw, who judges."""

    rows: tuple[Row, ...] = Field(
        ("none", "keywords", "soft", "pmg", "other_user", "copy_history", "oracle_target"),
        min_length=1,
        description="Ways to make pictures, in the order of the table's columns.",
    )
    draw: DrawConfig = DrawConfig()
    judge: JudgeConfig = JudgeConfig()
    inversion: InversionConfig = InversionConfig()
    ti_users: int | None = Field(None, ge=1, description="So many users, drawn by the seed, in every row; null: all.")
    ip_adapter: str | None = Field(None, min_length=1, description="Folder of ip_adapter: weights and image encoder.")
    ip_scale: float = Field(0.6, ge=0, le=2, description="Weight of the picture in ip_adapter.")

    @model_validator(mode="after")
    def _used(self) -> CompareConfig:
        if self.draw.mode is not None or self.draw.select:
            raise ValueError("draw.mode and draw.select: each row has a conditioning of its own, and nothing is chosen")
        return self


Draw = Callable[[Sequence[Taste], Path, DrawConfig, Host], None]


@dataclass(frozen=True)
class Bench:
    """What pictures are judged as: squares of ``side`` pixels. ``clip``: the CLIP to take where no other is named."""

    dataset: str
    side: int
    resize: Resize
    clip: str

    def open(self, config: JudgeConfig, device: str) -> Judges:
        """Raises ConfigError for weights that are not what they should be."""
        named = config.clip is not None
        return open_judges(config.clip or self.clip, config.weights_dir, device_of(device), needs_clip=named)

    def judging(self, samples: Mapping[int, Taste], judges: Judges, device: str) -> Judging:
        """Of these samples, by their numbers in the file."""
        return Judging(list(samples.values()), list(samples), judges, self.side, self.resize, device_of(device))


@dataclass(frozen=True)
class Studio:
    """What draws, and how it is judged. ``draw``: as `sensorium generate` does; ``invert`` and ``ip``: rows that are no
    adapter's."""

    bench: Bench
    adapter: str
    draw: Draw
    invert: Draw
    ip: Draw


def compare(studio: Studio, tastes: Sequence[Taste], out: Path, config: CompareConfig, host: Host) -> Evaluation:
    """Draw what is missing in ``out``, judge all of it, write ``evaluation.json``.

    Raises ConfigError and DataError; before anything slow where they can be known before.
    """
    if len(set(config.rows)) != len(config.rows):
        raise ConfigError(f"--compare {','.join(config.rows)}: a row stands there twice")
    numbers = _chosen(tastes, config)
    chosen = [tastes[number] for number in numbers]
    if "ip_adapter" in config.rows and config.ip_adapter is not None:
        weights_file(Path(config.ip_adapter).expanduser())
    judge = config.judge
    kept = common(unreadable(chosen), len(chosen), host, allow_missing=judge.allow_missing)
    samples = [chosen[place] for place in kept]
    if "other_user" in config.rows and len({taste.user for taste in samples}) < 2:
        raise ConfigError("row other_user needs samples of two users; leave it out of --compare")
    if "textual_inversion" in config.rows:
        for taste in samples:
            pictures_of(taste.user, samples)
    judges = studio.bench.open(judge, config.draw.device)
    shows, skipped_rows = _drawn(studio, samples, out, config, host)
    styled, origins = _with_words(samples, [out / row for row in STYLED if row in shows])
    by_number = dict(zip((numbers[place] for place in kept), styled, strict=True))
    judging = studio.bench.judging(by_number, judges, config.draw.device)
    board = judged(judging, shows, skipped_rows, host)
    content = {
        "format": _FORMAT,
        "dataset": studio.bench.dataset,
        "total_samples": len(tastes),
        "evaluated_samples": len(samples),
        "rows": {row: boards.row_json(board, row) for row in board.rows},
        "differences": boards.differences_json(board),
        "skipped_metrics": dict(board.skipped),
        "skipped_rows": dict(board.skipped_rows),
        "protocol": {**protocol(judging), **_drawing(config, shows), "adapter": studio.adapter, "style_texts": origins},
    }
    make_folder(out)
    write_json(out / RESULTS, content)
    draw = config.draw
    drawn = f"{draw.images} each, {draw.many_steps} steps of {draw.scheduler}, guidance {draw.guidance:g}"
    return boards.evaluation(board, f"{drawn}, seed {draw.seed}.")


def judged(judging: Judging, shows: Mapping[str, Show], skipped_rows: Mapping[str, str], host: Host) -> Board:
    """Every row by every judge."""
    measured = {row: judging.row(row, show, host) for row, show in shows.items()}
    metrics, values = boards.stack({row: found for row, (found, _) in measured.items()})
    sets = {row: found for row, (_, found) in measured.items()}
    return Board(judging.samples, judging.numbers, tuple(shows), metrics, values, sets, judging.skipped, skipped_rows)


def protocol(judging: Judging) -> dict[str, Any]:
    """What numbers must agree in to be compared."""
    return {
        "image_size": judging.side,
        "resize": judging.resize,
        "samples": boards.digest_of(judging.samples),
        "judges": judging.judges.identities(),
        "intervals": "95 %, bootstrap over users",
    }


def _drawing(config: CompareConfig, rows: Collection[str]) -> dict[str, Any]:
    """How the rows were drawn."""
    how = config.draw
    return {
        "draw": {**how.model_dump(mode="json", exclude={"batch", "device", "image_dir"}), "steps": how.many_steps},
        "inversion": config.inversion.model_dump(mode="json") if "textual_inversion" in rows else None,
        "ip_scale": config.ip_scale if "ip_adapter" in rows else None,
    }


def _chosen(tastes: Sequence[Taste], config: CompareConfig) -> list[int]:
    """The samples of all rows, by number: of all users, or of those that ``ti_users`` leaves."""
    users = list(dict.fromkeys(taste.user for taste in tastes))
    if config.ti_users is None:
        return list(range(len(tastes)))
    if config.ti_users > len(users):
        raise ConfigError(f"--ti-users {config.ti_users}: the data have {len(users)} users")
    places = generator(config.draw.seed, "users").permutation(len(users))[: config.ti_users]
    left = {users[place] for place in places}
    return [number for number, taste in enumerate(tastes) if taste.user in left]


def _drawn(
    studio: Studio, samples: Sequence[Taste], out: Path, config: CompareConfig, host: Host
) -> tuple[dict[str, Show], dict[str, str]]:
    """How to see each row, once it is drawn; and why others are not there."""
    shows: dict[str, Show] = {}
    skipped: dict[str, str] = {}
    for row in config.rows:
        if row == "ip_adapter" and config.ip_adapter is None:
            skipped[row] = "needs --ip-adapter FOLDER with ip-adapter_sd15.safetensors and image_encoder/"
            continue
        if row == "copy_history":
            shows[row] = lambda number: [load_image(samples[number].history[-1].path)]
        elif row == "oracle_target":
            shows[row] = lambda number: [load_image(samples[number].target.path)]
        else:
            folder = out / row
            host.say(f"row {row}")
            _draw_row(studio, row, samples, folder, config, host)
            shows[row] = from_folder(folder, config.draw.candidates)
    if not shows:
        raise ConfigError(f"nothing is left to be judged: {'; '.join(skipped.values())}")
    return shows, skipped


def _draw_row(
    studio: Studio, row: str, samples: Sequence[Taste], folder: Path, config: CompareConfig, host: Host
) -> None:
    if row == "textual_inversion":
        studio.invert(samples, folder, config.draw, host)
    elif row == "ip_adapter":
        studio.ip(samples, folder, config.draw, host)
    else:
        wanted = others(samples, config.draw.seed) if row == "other_user" else samples
        rule = config.draw.keywords if row in (*STYLED, "other_user") else "auto"  # the others are told no words
        studio.draw(wanted, folder, config.draw.model_copy(update={"mode": MODES[row], "keywords": rule}), host)


def others(samples: Sequence[Taste], seed: int) -> list[Taste]:
    """The samples with history and style of another user, drawn by the seed; noise and target stay their own."""
    found = []
    for taste in samples:
        strangers = [other for other in samples if other.user != taste.user]
        other = strangers[int(generator(seed, "other", taste.user, taste.target.id).integers(len(strangers)))]
        found.append(replace(taste, history=other.history, style=other.style))
    return found


def _with_words(samples: Sequence[Taste], folders: Sequence[Path]) -> tuple[Sequence[Taste], list[str]]:
    """The samples with the style text that their pictures were told, where there are such pictures, and where those
    texts come from."""
    if not folders:
        return samples, ["as in the data"]
    places = [folder_of(folders[0], number) for number in range(len(samples))]
    origins = {str(_info(place).get("keywords_from")) for place in places}
    return [_told(taste, place) for taste, place in zip(samples, places, strict=True)], sorted(origins)


def _told(taste: Taste, folder: Path) -> Taste:
    """A sample with the words that its pictures were told, if they were told some."""
    words = _info(folder).get("keywords")
    return replace(taste, style=", ".join(map(str, words))) if isinstance(words, list) and words else taste


def _info(folder: Path) -> Mapping[str, Any]:
    """Raises DataError."""
    try:
        info = reading.parse_json(reading.read_bytes(folder / INFO))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / INFO}: cannot be read ({error})") from error
    if not isinstance(info, dict):
        raise DataError(f"{folder / INFO}: holds no object; draw the sample again")
    return info


def from_folder(folder: Path, images: int) -> Show:
    """Pictures of samples as drawing.py writes them."""

    def show(number: int) -> list[Image.Image]:
        return [load_image(folder_of(folder, number) / f"gen_{one}.jpg") for one in range(images)]

    return show


def judge_folder(
    bench: Bench, tastes: Sequence[Taste], folder: Path, config: JudgeConfig, device: str, host: Host
) -> tuple[dict[str, Any], Evaluation]:
    """Judge pictures that lie there already: what ``evaluation.json`` says of one row, and the same for people.

    Raises DataError for pictures of other samples than ``tastes``.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pictures; `sensorium generate` writes one")
    counts: dict[int, int] = {}
    bad = unreadable(tastes)
    for number, taste in enumerate(tastes):
        reason, counts[number] = _drawn_for(taste, folder_of(folder, number))
        if reason is not None:
            bad.setdefault(number, reason)
    kept = common(bad, len(tastes), host, allow_missing=config.allow_missing)
    told = {number: _told(tastes[number], folder_of(folder, number)) for number in kept}
    judging = bench.judging(told, bench.open(config, device), device)

    def show(place: int) -> list[Image.Image]:
        number = kept[place]
        return from_folder(folder, counts[number])(number)

    name = folder.resolve().name
    board = judged(judging, {name: show}, {}, host)
    content = {
        "dataset": bench.dataset,
        "total_samples": len(tastes),
        "evaluated_samples": len(kept),
        **boards.row_json(board, name),
        "skipped_metrics": dict(board.skipped),
        "protocol": protocol(judging),
    }
    return content, boards.evaluation(board, f"Pictures of {folder}.")


def _drawn_for(taste: Taste, folder: Path) -> tuple[str | None, int]:
    """Why a sample's pictures cannot be judged, and how many there are. Raises DataError for those of another one."""
    if not (folder / INFO).exists():
        return f"{folder / INFO}: no such file", 0
    info = _info(folder)
    said, wanted = (str(info.get("user_id")), str(info.get("target_item_id"))), (taste.user, taste.target.id)
    if said != wanted:
        raise DataError(f"{folder}: is of user and target {said}, the data have {wanted} there; give the data it is of")
    count = info.get("num_generated")
    if not isinstance(count, int) or count < 1:
        raise DataError(f"{folder / INFO}: says no number of pictures (num_generated); draw the sample again")
    gone = [path for path in (folder / f"gen_{one}.jpg" for one in range(count)) if not path.is_file()]
    return (f"{gone[0]}: no such file" if gone else None), count
