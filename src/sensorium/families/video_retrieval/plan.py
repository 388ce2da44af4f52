"""How many tokens stand where, in integers alone: known before anything is computed, asserted while it is.

Legend: T frames, F clips, C CLS tokens of a clip (one a frame), S slots of a clip, M patch tokens of a clip.

Each block goes through: (a) neighbouring clips are joined, (b) matching on the block's input, (c) clip positions, (d)
the merge, (e) attention, (f) a merge by this attention's keys, (g) MLP. What was removed is a whole number computed
from whole percentages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from sensorium.errors import ConfigError
from sensorium.families.video_retrieval.config import ModelConfig, Switches
from sensorium.families.video_retrieval.shape import ClipShape

FRAMES_WORDS: Mapping[str, tuple[int, int]] = {
    "msrvtt": (12, 32),
    "didemo": (64, 64),
    "activitynet": (64, 64),
    "vatex": (12, 32),
}
"""Frames of a video and tokens of a text, by ``data.datatype``."""

USUAL_GROUPS: Mapping[int, tuple[int, int, int]] = {
    8: (2, 2, 2),
    12: (2, 2, 3),
    16: (2, 2, 4),
    18: (2, 3, 3),
    24: (2, 3, 4),
    32: (2, 4, 4),
    64: (4, 4, 4),
}
"""Clips that become one, by number of frames: in the three blocks that begin with the fourth from the end, but never
in the first one, which sees single frames."""

_MERGES = ("frame_merge", "cut_cross_pct", "cut_inside_pct", "tome_r")
_OF_PATCH = {32: (2, 30, 10, 3), 16: (10, 40, 20, 13)}
_OF_TRIAL = {"random:tiny": (1, 30, 10, 1)}  # a trial needs no numbers of its own


@dataclass(frozen=True)
class Recipe:
    """What decides a plan. ``groups``: by block, all of them, also where nothing is joined (then only the percentages
    of these blocks count); ``joined``: whether it is. ``everywhere``: patches removed in every block, in place of all
    other rules. ``slots``: at a boundary, 0: none. ``spatial_block``: None: no patches are selected."""

    groups: Mapping[int, int]
    joined: bool = True
    frame_merge: int = 0
    cut_cross_pct: int = 0
    cut_inside_pct: int = 0
    everywhere: int = 0
    slots: int = 0
    spatial_block: int | None = None


@dataclass(frozen=True)
class BlockPlan:
    """One block. ``group`` clips became one before it (1: none did); ``cut_before`` and ``cut_after`` patches of a clip
    are removed before and after its attention, which sees ``clips`` sequences of ``cls`` + ``slots`` + ``patches``
    tokens. ``new_slots``: the slots are made here. ``biased``: sizes can differ from 1. ``spatial``: patches are
    selected here."""

    block: int
    group: int
    clips: int
    cls: int
    slots: int
    patches: int
    cut_before: int
    cut_after: int
    new_slots: bool
    biased: bool
    spatial: bool

    @property
    def tokens(self) -> int:
        """Of a clip in the attention."""
        return self.cls + self.slots + self.patches

    @property
    def after(self) -> int:
        """Tokens of a clip in the MLP."""
        return self.tokens - self.cut_after


@dataclass(frozen=True)
class Plan:
    """All blocks of a video of ``frames`` frames of ``patches`` patches."""

    frames: int
    patches: int
    blocks: tuple[BlockPlan, ...]

    @property
    def joins(self) -> tuple[BlockPlan, ...]:
        """The blocks before which clips are joined."""
        return tuple(block for block in self.blocks if block.group > 1)

    def trace(self, *, together: bool = False) -> str:
        """Clips and tokens of every block, ``12x50→48, 12x48→46``; ``together``: blocks of as many clips that lose as
        many tokens stand as one, ``12x50→46``."""
        parts: list[tuple[BlockPlan, BlockPlan]] = []
        for block in self.blocks:
            alike = (
                together and parts and (parts[-1][1].clips, parts[-1][1].cut_after) == (block.clips, block.cut_after)
            )
            if alike and parts[-1][1].after == block.tokens:
                parts[-1] = (parts[-1][0], block)
            else:
                parts.append((block, block))
        return ", ".join(
            f"{first.clips}x{first.tokens}" + (f"→{last.after}" if last.cut_after else "") for first, last in parts
        )


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of a video: ``total`` and, beside it, those of ``matching`` and merging.

    Counted are the patch convolution, q, k, v, the attention's two products, its output, the MLP and the prompters; not
    normalisation, softmax, LoRA (it can be merged) and the output projection.
    """

    total: int
    matching: int


def frames_words(model: ModelConfig, datatype: str) -> tuple[int, int]:
    """Frames of a video and tokens of a text: the configuration's, else the data set's. Raises ConfigError."""
    if datatype not in FRAMES_WORDS:
        raise ConfigError(f"data.datatype {datatype!r} is unknown; allowed are {', '.join(FRAMES_WORDS)}")
    frames, words = FRAMES_WORDS[datatype]
    return model.frames or frames, model.words or words


def recipe_of(model: ModelConfig, shape: ClipShape, frames: int, on: Switches) -> Recipe:
    """What the configuration asks for. Raises ConfigError where a number has to be named and is not."""
    needed = (on.merge and not on.everywhere,) * 3 + (on.merge and on.everywhere,)
    usual = _OF_TRIAL.get(model.clip) or _OF_PATCH.get(shape.patch, (None,) * 4)
    given = (getattr(model, name) for name in _MERGES)
    found = [default if value is None else value for value, default in zip(given, usual, strict=True)]
    if unknown := [name for name, need, value in zip(_MERGES, needed, found, strict=True) if need and value is None]:
        names = ", ".join(f"model.{name}" for name in unknown)
        raise ConfigError(f"{names} must be named for patches of {shape.patch} pixels (known: 16 and 32)")
    values = {name: value or 0 if need else 0 for name, need, value in zip(_MERGES, needed, found, strict=True)}
    uses_groups = on.group or (on.merge and not on.everywhere)
    if on.spatial and model.spatial_block >= shape.layers:
        raise ConfigError(f"model.spatial_block {model.spatial_block}: this CLIP has blocks 0 to {shape.layers - 1}")
    return Recipe(
        groups=_groups(model, shape.layers, frames) if uses_groups else {},
        joined=on.group,
        frame_merge=values["frame_merge"],
        cut_cross_pct=values["cut_cross_pct"],
        cut_inside_pct=values["cut_inside_pct"],
        everywhere=values["tome_r"],
        slots=model.slots if on.temporal else 0,
        spatial_block=model.spatial_block if on.spatial else None,
    )


def _groups(model: ModelConfig, depth: int, frames: int) -> dict[int, int]:
    """By block. Raises ConfigError that offers what would be right."""
    if model.groups is None:
        if frames not in USUAL_GROUPS or depth < 4:
            near = sorted(USUAL_GROUPS, key=lambda known: (abs(known - frames), known))[0]
            raise ConfigError(
                f"model.frames {frames} in {depth} blocks: no usual groups are known; take {near} frames and 4 blocks "
                f"or more, or name model.groups (block: clips that become one), whose product is {frames}"
            )
        first = max(1, depth - 4)
        return dict(zip(range(first, first + 3), USUAL_GROUPS[frames], strict=True))
    groups = dict(sorted(model.groups.items()))
    wrong = [block for block, count in groups.items() if not 0 <= block < depth or count < 2]
    if not groups or wrong:
        found = f"{wrong[0]}: {groups[wrong[0]]}" if wrong else "nothing"
        raise ConfigError(
            f"model.groups holds {found}; allowed are blocks 0 to {depth - 1}, each joining 2 clips or more"
        )
    if prod(groups.values()) != frames:
        raise ConfigError(
            f"model.groups {groups}: their product is {prod(groups.values())}, but a video has {frames} frames; "
            "all clips must become one"
        )
    return groups


def plan_of(model: ModelConfig, shape: ClipShape, frames: int, on: Switches) -> Plan:
    """What the configuration comes to, with these switches. Raises ConfigError for what cannot be planned."""
    return make_plan(frames, shape.patches, shape.layers, recipe_of(model, shape, frames, on))


def make_plan(frames: int, patches: int, depth: int, recipe: Recipe) -> Plan:
    """The plan of ``depth`` blocks. Raises ConfigError for merges that cannot be done."""
    first = min(recipe.groups, default=depth)
    clips, cls, slots, tokens = frames, 1, 0, patches
    merged = False
    blocks = []
    for number in range(depth):
        group = recipe.groups.get(number, 1) if recipe.joined else 1
        if group > 1:
            clips, cls, tokens, slots = clips // group, cls * group, tokens * group, (group - 1) * recipe.slots
        before = _share(cls + tokens, recipe.cut_cross_pct) if number in recipe.groups and not recipe.everywhere else 0
        _check(number, tokens, before)
        tokens -= before
        merged = merged or before > 0
        spatial = number == recipe.spatial_block
        if spatial and merged:
            raise ConfigError(f"model.spatial_block {number}: patches were merged before, so that there is no grid")
        if recipe.everywhere:
            after = recipe.everywhere
        else:
            after = recipe.frame_merge if number < first else _share(cls + tokens, recipe.cut_inside_pct)
        _check(number, tokens, after)
        new_slots = group > 1 and recipe.slots > 0
        # With several frames in a sequence, one of them may be padding.
        biased = merged or slots > 0 or cls > 1
        blocks.append(BlockPlan(number, group, clips, cls, slots, tokens, before, after, new_slots, biased, spatial))
        tokens -= after
        merged = merged or after > 0
    return Plan(frames, patches, tuple(blocks))


def _share(tokens: int, percent: int) -> int:
    """Whole numbers: as a float, 10 * (1 - 0.9) is a little less than 1."""
    return tokens * percent // 100


def _check(block: int, patches: int, removed: int) -> None:
    if removed > patches // 2:
        raise ConfigError(
            f"block {block}: {removed} of {patches} patches would be merged, but matching halves them at most; lower "
            "model.frame_merge, model.cut_cross_pct, model.cut_inside_pct or model.tome_r"
        )


def selected(patches: int, percent: int) -> int:
    """Patches of a frame that are selected: the percentage, rounded up. Raises ConfigError if that is all of them."""
    found = -(-patches * percent // 100)
    if found >= patches:
        raise ConfigError(f"model.select_pct {percent}: {found} of {patches} patches; some must be left")
    return found


def cost(plan: Plan, shape: ClipShape, width: int, slots: int) -> Cost:
    """Multiply-accumulates of one video; ``width``: bottleneck of the prompters, ``slots``: at a boundary."""
    d, head = shape.width, shape.width // shape.heads
    total = plan.frames * plan.patches * 3 * shape.patch**2 * d
    matching = 0
    incoming, cls, patches = plan.frames, 1, plan.patches
    for block in plan.blocks:
        n, clips = block.tokens, block.clips
        if block.new_slots:
            total += incoming * (cls + patches) * width * (d + 2 * slots) + clips * block.slots * width * d
        if block.spatial:
            # down and up, two depthwise convolutions of 3 x 3 x 3, one pointwise
            total += plan.frames * plan.patches * (2 * d * width + 2 * 27 * width + width**2)
        total += clips * (4 * n * d * d + 2 * n * n * d + 2 * block.after * d * shape.inner)
        matching += clips * _matching(block.patches + block.cut_before, block.cut_before, d, d)
        matching += clips * _matching(block.patches, block.cut_after, head, d)
        incoming, cls, patches = clips, block.cls, block.patches - block.cut_after
    return Cost(total, matching)


def _matching(patches: int, removed: int, metric: int, width: int) -> int:
    """Cosines of one half with the other, and what is added up."""
    if not removed:
        return 0
    half = patches // 2
    return half * (patches - half) * metric + (half + removed) * width
