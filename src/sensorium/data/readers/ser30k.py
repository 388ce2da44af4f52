"""SER30K (Liu 2022): 30,739 stickers of 1,887 themes, which stand for users.

The folder as it comes when it was asked for (github.com/nku-shengzheliu/SER30K has the form)::

    Images/THEME/NAME.jpg       the stickers
    Annotations/                optional: image-level/{train,val,test}.json, or without that folder:
                                {"annotations": [{"topic": THEME, "file_name": NAME.jpg, "anno": 1 to 7, "text": ...}]}
    ser30k_captions.json        optional, as the published set has none: from THEME/NAME.jpg to caption

Nobody chose stickers here: samples are drawn, ``samples`` of them for each theme. A history are stickers of the theme.
The target is one of another theme, as the published script has it (``target=other_theme``), of which a history says
nothing, or one of the same theme that is not in the history (``same_theme``). An item is called ``THEME/NAME.jpg``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from sensorium.data import parsing
from sensorium.data.history_build import SUFFIXES, Choices, Raw, Step, captions_of, compose
from sensorium.data.items import DataSet
from sensorium.errors import DataError

NAME = "ser30k"
SUMMARY = "SER30K: stickers by theme, as histories of a theme's stickers"
LICENCE = "research only, by request form; never to be published again"
DEFAULT_ROOT = Path("data/ser30k")
PICTURES, ANNOTATIONS, CAPTIONS = "Images", "Annotations", "ser30k_captions.json"
EMOTIONS = 7

Target = Literal["other_theme", "same_theme"]


class Options(Choices):
    """What is drawn, and how it is split."""

    history: int = Field(3, ge=1, le=32, description="Stickers of the theme before the one that is foretold.")
    target: Target | None = Field(
        None,
        description="The sticker that is foretold is of another theme, as published, or of the same theme; null: "
        "other_theme with split=guide, same_theme with split=honest.",
    )
    samples: int = Field(3, ge=1, le=1000, description="Samples of each theme.")

    @property
    def kind(self) -> Target:
        """Of which theme targets are."""
        return self.target or ("other_theme" if self.split == "guide" else "same_theme")


def read(root: Path | None, options: Options) -> DataSet:
    """Read the data set. Raises DataError naming file or folder of what is missing or damaged."""
    return compose(gather(root, options), options)[0]


def gather(root: Path | None, options: Options, *, captions: Mapping[str, str] | None = None, by: str = "") -> Raw:
    """What is drawn from its files. ``captions``: instead of a file of them, written by ``by``."""
    root = root or DEFAULT_ROOT
    parsing.require_folder(root, "SER30K has to be asked for: github.com/nku-shengzheliu/SER30K has the form")
    places = parsing.find_places(root, {PICTURES, ANNOTATIONS}, closed={PICTURES})
    if PICTURES not in places:
        raise DataError(f"SER30K in {root}: the folder {PICTURES} is missing, with a folder for each theme")
    themes = _themes(places[PICTURES])
    least = options.history + (options.kind == "same_theme")
    large = {theme: names for theme, names in themes.items() if len(names) >= least}
    if len(large) < 2:
        raise DataError(f"{places[PICTURES]}: {len(large)} themes have {least} stickers or more; two are needed")
    if captions is None:
        captions, by = captions_of(options, root, CAPTIONS, {})
    pictures = {f"{theme}/{name}": places[PICTURES] / theme / name for theme, names in themes.items() for name in names}
    about = _annotations(places[ANNOTATIONS]) if ANNOTATIONS in places else {}
    count = sum(map(len, themes.values()))
    notes = [f"SER30K: {count:,} stickers of {len(themes):,} themes, targets of the {options.kind.replace('_', ' ')}"]
    if len(large) < len(themes):
        notes.append(f"SER30K: {len(themes) - len(large):,} themes have fewer than {least} stickers, left out")
    return Raw(
        NAME, LICENCE, root, options.history, _drawn(large, options), pictures, captions, by, about, tuple(notes),
        published="themes", strangers=options.kind == "other_theme",
    )  # fmt: skip


def _themes(folder: Path) -> dict[str, list[str]]:
    """The names of the stickers of each theme, sorted."""
    found = {}
    for theme in parsing.names_in(folder):
        if (folder / theme).is_dir():
            names = [name for name in parsing.names_in(folder / theme) if name.lower().endswith(SUFFIXES)]
            if names:
                found[theme] = names
    return found


def _drawn(themes: Mapping[str, Sequence[str]], options: Options) -> dict[str, list[Step]]:
    """The stickers of each theme's samples, one sample after the other; Python's generator, as published."""
    numbers = random.Random(options.seed)
    names = sorted(themes)
    found: dict[str, list[Step]] = {}
    for theme in names:
        others = [name for name in names if name != theme]
        steps = found.setdefault(theme, [])
        for _ in range(options.samples):
            history = numbers.sample(list(themes[theme]), options.history)
            if options.kind == "other_theme":
                other = numbers.choice(others)
                target = f"{other}/{numbers.choice(themes[other])}"
            else:
                target = f"{theme}/{numbers.choice([name for name in themes[theme] if name not in history])}"
            steps += [Step(f"{theme}/{name}", target=False) for name in history]
            steps.append(Step(target))
    return found


def _annotations(folder: Path) -> dict[str, dict[str, str]]:
    """The emotion of each sticker that is annotated, by the number that the set gives it."""
    inner = folder / "image-level"
    found: dict[str, dict[str, str]] = {}
    for path in parsing.listed(inner if inner.is_dir() else folder):
        if path.suffix != ".json":
            continue
        for _, number, entry in parsing.records(path, "annotations"):
            with parsing.told_of(path):
                theme, name = (parsing.field(entry, key, str) for key in ("topic", "file_name"))
                emotion = entry.get("anno")
                if type(emotion) is not int or not 1 <= emotion <= EMOTIONS:
                    raise ValueError(f"annotations[{number}].anno: expected 1 to {EMOTIONS} (found {emotion!r})")
            found[f"{theme}/{name}"] = {"emotion": str(emotion)}
    return found
