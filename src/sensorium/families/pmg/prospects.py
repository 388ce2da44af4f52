"""What ``sensorium check`` says of a `pmg` run: how far what learns can get, lengths of prompts, sizes of the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from sensorium.data.features import cache_info, default_root
from sensorium.engine.contract import Ahead, Finding
from sensorium.engine.seeds import generator
from sensorium.families.pmg.data import ROUND, Frozen, TrainSource
from sensorium.families.pmg.model import PMGAdapter
from sensorium.families.pmg.task import PMGTask, group, sections

LEAST = 0.05  # of its first size; what can move by less stays what it was
BARS = 8


def outlook(ahead: Ahead) -> list[Finding]:
    """Rows of the check."""
    assert isinstance(ahead.task, PMGTask)
    assert isinstance(ahead.sources.train, TrainSource)
    adapter, split = ahead.task.adapter, ahead.sources.train.split
    counts = adapter.sizes.counts()
    learned = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return [
        Finding("what learns", f"{learned}: {sum(counts.values()):,} in all"),
        reach(ahead, adapter),
        prompts(ahead, [len(one) for one in split.questions]),
        _cache(split.frozen),
    ]


def reach(ahead: Ahead, adapter: PMGAdapter) -> Finding:
    """The sum of each part's learning rates, by which AdamW can move its numbers, as a share of their first root mean
    square; the mapping's is that of its matrix."""
    found, low = [], {}
    for name, parameter in _parts(adapter).items():
        share = ahead.reach[f"adapter.{name}"] / _size(parameter)
        words = {"image_prompt_NH": "image prompt", "prefix_L2KPD": "prefix"}.get(name, "mapping")
        found.append(f"{words} {share:.2%}")
        if share < LEAST:
            low[group(name, parameter)] = LEAST / share if share else math.inf
    text = f"all steps together can move {', '.join(found)} of its first size"
    if not low:
        return Finding("reach", text)
    where = "optim.lr" if len(low) == len(found) else ", ".join(f"optim.groups.{name}.lr_scale" for name in low)
    times = max(low.values())
    factor = f"{math.ceil(times)}-fold, or train longer" if math.isfinite(times) else "above 0"
    rate = f"(optim.lr is {ahead.config.optim.lr:g})"
    return Finding("reach", f"{text}: below {LEAST:.0%} little is learned; raise {where} {factor} {rate}", warning=True)


def _parts(adapter: PMGAdapter) -> dict[str, nn.Parameter]:
    """One parameter of each part that learns, by its name; a mapping that begins at zero has no size."""
    without = {"mapping.bias", *(["mapping.weight"] if adapter.mean_H is not None else [])}
    return {name: parameter for name, parameter in adapter.named_parameters() if name not in without}


def _size(parameter: nn.Parameter) -> float:
    return float(parameter.detach().double().square().mean().sqrt())


def prompts(ahead: Ahead, lengths: Sequence[int]) -> Finding:
    """How long the training prompts are, soft tokens not counted, and how much of a batch is padding."""
    model, _ = sections(ahead.config)
    found = np.array(lengths)
    shortest, width = int(found.min()), math.ceil((int(found.max()) - int(found.min()) + 1) / BARS)
    counts = np.bincount((found - shortest) // width)
    firsts = [shortest + width * number for number in range(len(counts))]
    names = [f"{first}-{first + width - 1}" if width > 1 else f"{first}" for first in firsts]
    bars = ", ".join(f"{name}: {count:,}" for name, count in zip(names, counts, strict=True))
    cap = model.max_sequence_length - model.num_image_prompt
    longest, most = padding(found, ahead.rows, ahead.config.seed), 1 - float(found.mean()) / cap
    given = " (as it is set)"
    order = "sorted" if ahead.config.loader.sort_window else "unsorted"
    text = (
        f"tokens {bars}; padding {longest:.0%} to the longest of {ahead.rows} unsorted"
        f"{given * ((model.pad_to, order) == ('longest', 'unsorted'))}, "
        f"{most:.0%} to {cap}{given * (model.pad_to == 'max')}"
    )
    wasted = model.pad_to == "max" and most - longest > 0.5
    return Finding("prompts", f"{text}; model.pad_to=longest saves most of it" * wasted or text, warning=wasted)


def padding(lengths: np.ndarray, rows: int, seed: int) -> float:
    """Share of padding in an epoch of shuffled batches of ``rows``, each padded to its longest; the last one is what is
    left."""
    shuffled = generator(seed, "prompt lengths").permutation(lengths)
    batches = [shuffled[first : first + rows] for first in range(0, len(shuffled), rows)]
    room = sum(len(batch) * math.ceil(int(batch.max()) / ROUND) * ROUND for batch in batches)
    return 1 - float(shuffled.sum()) / room


def _cache(frozen: Frozen) -> Finding:
    """The folders of the feature cache that the run reads; they may hold features for other runs, too."""
    stores = [frozen.pictures, frozen.plain, frozen.captions, frozen.styles]
    names = dict.fromkeys(store.namespace for store in stores if store is not None)
    held = {one.name: one for one in cache_info(default_root()) if one.name in names}
    parts = [f"{held[name].encoder} {held[name].bytes / 1e6:.3g} MB" for name in names]
    total = sum(one.bytes for one in held.values())
    return Finding("feature cache", f"{', '.join(parts)}: {total / 1e6:.3g} MB on disk")
