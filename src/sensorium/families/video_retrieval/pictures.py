"""A picture of what was merged: frames as rows, the model's blocks as columns.

Legend: T frames, R pixels, P patches of a frame, G patches of its side, S slots.
"""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sensorium.data.frames import FrameReader, Stretch, stacked
from sensorium.data.sampling import RULES, Rule, Seconds, nearest
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel
from sensorium.families.video_retrieval.plan import Plan
from sensorium.families.video_retrieval.state import TokenState

CELL = 168  # pixels of a frame's side, at least
GAP, LEFT, HEAD, LINE = 16, 70, 46, 19  # pixels: between cells, for times, for headings, of a line of text
PAPER, INK, GREY, EDGE = (255, 255, 255), (20, 20, 20), (110, 110, 110), (215, 215, 215)
SELECTED = (255, 176, 0)
_TURN = 0.618034  # golden section: neighbouring numbers get distant hues
Integers = NDArray[np.int64]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Seen:
    """One video: ``frames`` ``[T, 3, R, R]`` uint8, the ``seconds`` at which they stand, its ``name``."""

    frames: Tensor
    seconds: Sequence[float]
    name: str


@dataclass(frozen=True)
class Column:
    """A heading of two lines, and ``cells``: a picture for each frame."""

    title: str
    below: str
    cells: Sequence[Pixels]


def look_at(stretch: Stretch, reader: FrameReader, rule: Rule, count: int) -> Seen:
    """The ``count`` frames of a video that a model sees when it is evaluated. Raises DataError."""
    instants: list[float] = []

    def choose(length: float) -> Seconds:
        found = RULES[rule](length, count, None)
        grid = reader.look.instants(length)
        instants.extend(grid[nearest(found, grid)].tolist())
        return found

    images = reader.read(stretch, choose)
    return Seen(torch.from_numpy(stacked(images, reader.look.side)), instants, stretch.path.name)


def shown_blocks(plan: Plan) -> list[int]:
    """The first block, the last before clips are joined, those that join, and the last; without any, four of them."""
    last = len(plan.blocks) - 1
    joins = [step.block for step in plan.joins]
    chosen = {0, max(0, joins[0] - 1), *joins, last} if joins else {last * part // 3 for part in range(4)}
    return sorted(chosen)


@torch.inference_mode()
def traced(seen: Seen, model: UnifiedTempMeSTOPModel) -> Image.Image:
    """What a model, in eval mode, merges of a video."""
    device = model.clip.temperature.log_scale.device
    mask = torch.ones(1, len(seen.frames), dtype=torch.bool, device=device)
    return merging_picture(seen, model.trace(seen.frames[None].to(device), mask), model.plan)


def merging_picture(seen: Seen, states: Sequence[TokenState], plan: Plan) -> Image.Image:
    """``states``: what ``model.trace`` gives for this video alone.

    Patches that share a token are filled with their mean colour and have one outline, of one colour in all frames;
    other patches are shown as they are. Below stand sizes of tokens and weights of slots.
    """
    side = seen.frames.shape[-1]
    scale = -(-CELL // side)
    frames = np.repeat(np.repeat(seen.frames.permute(0, 2, 3, 1).cpu().numpy(), scale, 1), scale, 2)
    blocks, cell = shown_blocks(plan), side * scale
    columns = [Column("input", "as the model sees it", list(frames)), _saliency(frames, states)]
    columns += [_merged(frames, states[block + 1], block) for block in blocks]
    width, font = LEFT + len(columns) * (cell + GAP), ImageFont.load_default(14)
    most = int((width - 12) / font.getlength("0"))
    text = [line for words in caption(seen, states, blocks) for line in textwrap.wrap(words, most)]
    height = HEAD + len(frames) * (cell + GAP) + LINE * (len(text) + 1)
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    for row, second in enumerate(seen.seconds):
        pen.text((6, HEAD + row * (cell + GAP) + cell // 2), f"{second:.2f} s", INK, font, "lm")
    for number, column in enumerate(columns):
        x = LEFT + number * (cell + GAP)
        pen.text((x, 6), column.title, INK, font)
        pen.text((x, 24), column.below, GREY, font)
        for row, pixels in enumerate(column.cells):
            top = HEAD + row * (cell + GAP)
            page.paste(Image.fromarray(pixels), (x, top))
            pen.rectangle((x - 1, top - 1, x + cell, top + cell), outline=EDGE)
    for place, block in enumerate(blocks, 2):
        _bars(pen, LEFT + place * (cell + GAP), cell, len(frames), states[block + 1].n_cls)
    for line, words in enumerate(text):
        pen.text((6, height - LINE * (len(text) - line) - 6), words, INK, font)
    return page


def caption(seen: Seen, states: Sequence[TokenState], blocks: Sequence[int]) -> list[str]:
    """What the picture cannot show, a line a block."""
    lines = [
        f"{seen.name}. What has one outline colour in a column is one token, in whichever frames; patches without "
        "an outline are still by themselves. Grey bars: frames that are one clip."
    ]
    for block in blocks:
        state = states[block + 1]
        sizes = state.size[0, :, state.n_cls :]
        clips, patches = sizes.shape
        tokens = f"{state.n_cls} CLS, {patches} for patches" + f", {state.n_slot} slots" * (state.n_slot > 0)
        line = f"block {block}: {clips} clip{'s' * (clips > 1)} of {state.x.shape[2]} tokens ({tokens})"
        line += f"; size of a token: {sizes.mean():.1f} patches on average, {sizes.max():.0f} at most"
        if state.slot_log is not None:
            weights = state.slot_log[0].exp().tolist()
            line += "; weights of slots: " + " | ".join(" ".join(f"{w:.2f}" for w in clip) for clip in weights)
        lines.append(line)
    return lines


def _bars(pen: ImageDraw.ImageDraw, x: int, cell: int, rows: int, frames: int) -> None:
    """A bar beside the ``frames`` neighbouring rows that are one clip by then."""
    for first in range(0, rows, frames) if frames > 1 else ():
        top = HEAD + first * (cell + GAP)
        pen.rectangle((x - 10, top, x - 6, top + frames * (cell + GAP) - GAP - 1), fill=GREY)


def _saliency(frames: Pixels, states: Sequence[TokenState]) -> Column:
    """The patches that were selected, bright, before anything was merged; the others pale."""
    state = next((state for state in states if state.saliency is not None), None)
    if state is None:
        return Column("saliency", "nothing is selected", list(_pale(frames)))
    assert state.saliency is not None
    rows, grid = len(frames), _grid(state, len(frames))
    chosen_TGG = state.saliency[0].flatten().cpu().numpy()[grid] > 0.5
    pixels = _pale(frames)
    cells = []
    for row in range(rows):
        shown = np.where(_blown(chosen_TGG[row], frames.shape[1])[..., None], frames[row], pixels[row])
        cells.append(_outlined(shown, chosen_TGG[row].astype(np.int64) - 1, {0: SELECTED}))
    return Column("saliency", f"{chosen_TGG[0].sum()} of {chosen_TGG[0].size} are selected", cells)


def _merged(frames: Pixels, state: TokenState, block: int) -> Column:
    """The patches as the block leaves them."""
    rows, side = frames.shape[:2]
    grid = _grid(state, rows)
    tokens, numbers_TGG = np.unique(grid, return_inverse=True)
    numbers_TGG = numbers_TGG.reshape(grid.shape)
    means = frames.reshape(rows, grid.shape[1], -1, grid.shape[2], side // grid.shape[2], 3).mean((2, 4))
    counts = np.bincount(numbers_TGG.ravel())
    sums = [np.bincount(numbers_TGG.ravel(), means[..., part].ravel()) for part in range(3)]
    colours = (np.stack(sums, axis=1) / counts[:, None]).round().astype(np.uint8)
    shared = [number for number in range(len(tokens)) if counts[number] > 1]
    outlines = {number: _hue(place) for place, number in enumerate(shared)}
    cells = []
    for row in range(rows):
        numbers = _blown(numbers_TGG[row], side)
        filled = np.where((counts[numbers] > 1)[..., None], colours[numbers], frames[row])
        cells.append(_outlined(filled, numbers_TGG[row], outlines))
    return Column(f"block {block}", f"{numbers_TGG.size} patches, {len(tokens)} tokens", cells)


def _grid(state: TokenState, rows: int) -> Integers:
    """The token that holds each patch ``[T, G, G]``."""
    assert state.source is not None
    source_TN = state.source[0].cpu().numpy().reshape(rows, -1)[:, 1:]  # without CLS
    side = round(source_TN.shape[1] ** 0.5)
    return source_TN.reshape(rows, side, side)


def _pale(frames: Pixels) -> Pixels:
    grey = frames.mean(-1, keepdims=True)
    return (0.3 * grey + 0.7 * 255).repeat(3, -1).astype(np.uint8)


def _blown(values_GG: NDArray[np.generic], side: int) -> NDArray[np.generic]:
    """A value of each patch as one of each pixel."""
    factor = side // len(values_GG)
    return values_GG.repeat(factor, 0).repeat(factor, 1)


def _outlined(pixels: Pixels, numbers_GG: Integers, outlines: Mapping[int, tuple[int, int, int]]) -> Pixels:
    """Lines along the patches of each number that has an outline, where its neighbour has another number."""
    image = Image.fromarray(pixels.astype(np.uint8))
    pen, step = ImageDraw.Draw(image), len(pixels) // len(numbers_GG)
    around = np.pad(numbers_GG, 1, constant_values=-2)
    for (y, x), number in np.ndenumerate(numbers_GG):
        if int(number) not in outlines:
            continue
        left, top, right, low = x * step, y * step, (x + 1) * step - 1, (y + 1) * step - 1
        sides = {
            (left, top, right, top + 2): around[y, x + 1],
            (left, low - 2, right, low): around[y + 2, x + 1],
            (left, top, left + 2, low): around[y + 1, x],
            (right - 2, top, right, low): around[y + 1, x + 2],
        }
        for box, neighbour in sides.items():
            if neighbour != number:
                pen.rectangle(box, fill=outlines[int(number)])
    return np.asarray(image)


def _hue(place: int) -> tuple[int, int, int]:
    shade = 0.95 if place % 2 else 0.7
    red, green, blue = colorsys.hsv_to_rgb(place * _TURN % 1, 0.9, shade)
    return round(red * 255), round(green * 255), round(blue * 255)
