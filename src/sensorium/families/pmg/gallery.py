"""The grid of pictures in the report: a few users' histories and targets, and what is drawn with and without taste."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from torch import nn

from sensorium.data.media import load_image
from sensorium.data.tastes import Taste
from sensorium.engine.contract import Card, Gallery, Shown, Source
from sensorium.engine.settings import RunConfig
from sensorium.families.pmg.config import DrawMode
from sensorium.families.pmg.data import EvalSource
from sensorium.families.pmg.painting import CAPTION_ONLY, Painter, Wish, side_by_side, soft_tokens
from sensorium.families.pmg.prompts import negative_prompt_of
from sensorium.families.pmg.sampling import Sampling, picture_seed
from sensorium.families.pmg.task import PMGTask, folder_of, sections


def pictures(task: nn.Module, source: Source, config: RunConfig) -> Mapping[str, bytes]:
    """The same pictures while the run trains (contract.Family)."""
    assert isinstance(task, PMGTask)
    assert isinstance(source, EvalSource)
    return grid_gallery(task, source, config)[1]


_MODES: Mapping[DrawMode, str] = {
    CAPTION_ONLY: "the caption alone",
    "target_soft": "with soft tokens",
    "target_soft_style": "and style text",
}
_SIDE = 160  # pixels of a picture in the grid


def grid_gallery(task: PMGTask, source: EvalSource, config: RunConfig) -> tuple[tuple[Gallery, ...], dict[str, bytes]]:
    """The gallery and its pictures by file name; nothing where ``data.grid_users`` is 0. Seeds are fixed."""
    model, data = sections(config)
    chosen = _users(source.split.tastes, data.grid_users)
    if not chosen:
        return (), {}
    from sensorium.families.pmg.sources import open_prompts

    histories = [tuple(liked.caption for liked in taste.history) for taste in chosen]
    soft = soft_tokens(task, open_prompts(model, data), histories, 8)
    modes: list[DrawMode] = [mode for mode in _MODES if mode != "target_soft" or model.conditioning != "soft_only"]
    if model.conditioning == "soft_only":
        modes = [CAPTION_ONLY, "soft_only"]
    wishes = [
        Wish(history, taste.target.caption, taste.style, picture_seed(0, taste.user, taste.target.id, 0), mode)
        for mode in modes
        for taste, history in zip(chosen, histories, strict=True)
    ]
    how = Sampling(data.image_size, data.grid_steps)
    negative = negative_prompt_of(data.name, data.negative_prompt)
    made = list(Painter(task, folder_of(task), how).paint(wishes, soft, negative, 8))
    cards, pictures = [], {}
    for row, taste in enumerate(chosen):
        drawn = [made[number * len(chosen) + row] for number in range(len(modes))]
        looked = [load_image(liked.path) for liked in (*taste.history, taste.target)]
        name = f"user-{row}.png"
        pictures[name] = _png(side_by_side([*looked, *drawn], _SIDE))
        words = " · ".join(["history"] * len(taste.history) + ["target"] + [_MODES.get(one, one) for one in modes])
        cards.append(
            Card(
                Shown(f"user {taste.user}: {words}", image=name),
                (
                    Shown(f"history: {'; '.join(liked.caption for liked in taste.history)}"),
                    Shown(f"target: {taste.target.caption}"),
                    *([Shown(f"style: {taste.style}")] if taste.style else []),
                ),
            )
        )
    note = f"{how.steps} steps of {how.scheduler}, guidance {how.guidance:g}, the same seed in a row, not chosen."
    return (Gallery("what users like, and what is drawn for them", tuple(cards), note, large=True),), pictures


def _users(tastes: Sequence[Taste], count: int) -> list[Taste]:
    """The first sample of users spread evenly over the split."""
    first = {taste.user: taste for taste in reversed(tastes)}
    users = list(reversed(first))
    places = np.linspace(0, len(users) - 1, min(count, len(users))).round().astype(int) if count else []
    return [first[users[int(place)]] for place in places]


def _png(picture: Image.Image) -> bytes:
    packed = io.BytesIO()
    picture.save(packed, "PNG")
    return packed.getvalue()
