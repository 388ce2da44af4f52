"""Pictures of merging: who shares a colour, who an outline, what is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from video_rows import build, videos

from sensorium.data.frames import DirectFrames, Look, Stretch
from sensorium.errors import DataError
from sensorium.families.video_retrieval.pictures import (
    CELL,
    GAP,
    HEAD,
    LEFT,
    SELECTED,
    Seen,
    caption,
    look_at,
    merging_picture,
    shown_blocks,
)
from sensorium.families.video_retrieval.plan import Plan, Recipe, make_plan
from sensorium.families.video_retrieval.state import TokenState

SIDE = 2 * CELL  # of a frame, in patches of CELL pixels


def seen(frames: int) -> Seen:
    """Frames of four patches, each of one shade."""
    shades = torch.arange(1, 1 + 4 * frames, dtype=torch.uint8).reshape(frames, 1, 2, 2) * 20
    pixels = shades.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3).expand(-1, 3, -1, -1)
    return Seen(pixels, [0.0, 0.5], "a.mp4")


def states(source: list[int], saliency: list[float] | None = None) -> list[TokenState]:
    """Two frames as one clip; ``source`` and ``saliency`` of all CLS and patches."""
    start = TokenState(torch.zeros(1, 2, 5, 4), torch.ones(1, 2, 5), 1, source=torch.arange(10)[None])
    if saliency is not None:
        start = TokenState(start.x, start.size, 1, saliency=torch.tensor(saliency).view(1, 2, 5), source=start.source)
    log = torch.tensor([[[-0.5, -3.0]]])
    end = TokenState(torch.zeros(1, 1, 9, 4), torch.ones(1, 1, 7), 2, 2, log, source=torch.tensor([source]))
    return [start, end]


def plan() -> Plan:
    return make_plan(2, 4, 1, Recipe(groups={0: 2}, cut_cross_pct=40, slots=2))


def cell(picture: NDArray[np.uint8], row: int, column: int) -> NDArray[np.uint8]:
    """The pixels of a frame; patches are its quarters."""
    x, y = LEFT + column * (SIDE + GAP), HEAD + row * (SIDE + GAP)
    return picture[y : y + SIDE, x : x + SIDE]


def middle(pixels: NDArray[np.uint8], patch: tuple[int, int]) -> list[int]:
    found: list[int] = pixels[patch[0] * CELL + CELL // 2, patch[1] * CELL + CELL // 2].tolist()
    return found


def edge(pixels: NDArray[np.uint8], patch: tuple[int, int]) -> list[int]:
    """Of the upper side of a patch."""
    found: list[int] = pixels[patch[0] * CELL + 1, patch[1] * CELL + CELL // 2].tolist()
    return found


# The first patch of the first frame and the last of the second are one token; two of the second frame another.
SOURCE = [0, 2, 3, 4, 5, 1, 6, 6, 7, 2]


def test_what_shares_a_token_has_one_colour_and_one_outline_in_all_frames() -> None:
    picture = np.asarray(merging_picture(seen(2), states(SOURCE), plan()))
    first, second = (cell(picture, row, 2) for row in range(2))
    assert middle(first, (0, 0)) == middle(second, (1, 1)) == [90] * 3  # mean of 20 and 160
    assert middle(second, (0, 0)) == middle(second, (0, 1)) == [110] * 3  # mean of 100 and 120
    assert edge(first, (0, 0)) == edge(second, (1, 1)) != edge(second, (0, 0)) == edge(second, (0, 1))
    # Alone: as it is, without an outline.
    assert middle(first, (0, 1)) == edge(first, (0, 1)) == [40] * 3
    # No line between patches of one token, and one at their other sides.
    between = second[CELL // 2, CELL - 2 : CELL + 2].tolist()
    assert between == [[110] * 3] * 4
    assert second[CELL - 1, CELL // 2].tolist() == edge(second, (0, 0))
    assert np.array_equal(cell(picture, 0, 0), seen(2).frames[0].permute(1, 2, 0).numpy())


def test_selected_patches_stand_out() -> None:
    chosen = [0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    picture = np.asarray(merging_picture(seen(2), states(SOURCE, [float(one) for one in chosen]), plan()))
    first, second = (cell(picture, row, 1) for row in range(2))
    assert middle(first, (0, 1)) == [40] * 3
    assert middle(second, (1, 1)) == [160] * 3
    assert edge(first, (0, 1)) == edge(second, (1, 1)) == list(SELECTED)
    assert edge(first, (0, 0)) == middle(first, (0, 0)) == [int(0.3 * 20 + 0.7 * 255)] * 3


def test_the_caption_tells_sizes_and_weights() -> None:
    line = caption(seen(2), states(SOURCE), [0])[1]
    assert "block 0: 1 clip of 9 tokens (2 CLS, 5 for patches, 2 slots)" in line
    assert line.endswith("weights of slots: 0.61 0.05")


def test_a_real_trace_is_drawn() -> None:
    model = build("unified")
    clip = videos(1)
    with torch.inference_mode():
        found = model.trace(clip, torch.ones(1, model.frames))
    blocks = shown_blocks(model.plan)
    assert blocks == [0, 1, 2, 3]
    picture = merging_picture(Seen(clip[0], [0.0] * model.frames, "x"), found, model.plan)
    side = -(-CELL // 32) * 32
    assert picture.width == LEFT + (2 + len(blocks)) * (side + GAP)
    assert len(caption(Seen(clip[0], [], "x"), found, blocks)) == 1 + len(blocks)


def test_the_blocks_that_are_shown() -> None:
    joined = make_plan(12, 49, 12, Recipe(groups={8: 2, 9: 2, 10: 3}))
    assert shown_blocks(joined) == [0, 7, 8, 9, 10, 11]
    assert shown_blocks(make_plan(12, 49, 12, Recipe(groups={}))) == [0, 3, 7, 11]


def test_what_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none"):
        look_at(Stretch(tmp_path / "none.mp4"), DirectFrames(Look(32, 3.0, 192)), "segments", 8)
