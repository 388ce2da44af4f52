"""What the feature cache saves `interaction`: vectors to be predicted, stored against encoded anew in each step.

    OMP_NUM_THREADS=1 python benchmarks/interaction_cache.py

"targets" are what stage 3 wants predicted: vectors of the model as it was when the stage began (the guide's size tiny).
"teachers" are what stage 2 wants predicted: vectors of frozen encoders of the real classes and sizes (E5-small, CLIP
ViT-B/32, Whisper-tiny at its 30 s window) with random weights. JPEGs of 500 x 375, captions of 11 words, recordings of
10 s, all three in each row, 32 rows a batch.

Supply: rows a second of the vectors alone. Live counts decoding and preprocessing, and gives what the cache holds.
Epochs: steps of the stage with loading, in 4 chunks with checkpointing as in the guide; ways take turns batch by batch.
"live" encodes what the cache would hold (middle squares, whole recordings); "own views" the crops that the step trains
on, decoded already. Such a step is worth five forward passes, "own views" are one more: so beside them an epoch of
stage 3 gains at most 1.2 times, and epochs are not asserted. On a CPU, seconds are processor time. Ends with an error
if stored vectors of any modality come less than 20 times as fast as live ones.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import clock, machine, median, side_by_side, spread, table
from feature_cache import make_data, make_encoders
from torch import Tensor, nn

from sensorium import families
from sensorium.data.feature_fill import load
from sensorium.data.features import Encoder
from sensorium.data.items import MODALITIES, Modality
from sensorium.engine import optim, settings
from sensorium.engine.contract import Begin, Host, Stage
from sensorium.engine.stages import learnable, select
from sensorium.families.interaction.data import Stores, TrainSource
from sensorium.families.interaction.model import InteractionModel
from sensorium.families.interaction.plan import TowerEncoder, begin_stage
from sensorium.families.interaction.sources import ALIGN, FULL, contents_of
from sensorium.families.interaction.task import InteractionTask, embed
from sensorium.parts.encoders import EncoderOptions, open_encoder
from sensorium.parts.encoders_base import Modality as Encoded

BATCH, SECONDS, PASSES, WANTED, CLOSE = 32, 10, 50, 20, 1e-3  # float16 is closer than 1e-3, relative in norm
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FAMILY = families.load("interaction")
TEACHERS: Mapping[Encoded, str] = {"text": "e5-small", "image": "clip", "audio": "whisper"}
STAGES = {"targets": FULL, "teachers": ALIGN}
SUPPLY = [("supply", what, way) for what in STAGES for way in ("cached", "live")]
EPOCHS = {"targets": ("cached", "live", "own views"), "teachers": ("cached", "live")}


@dataclass
class Run:
    """A run whose stage has begun; ``stores`` hold what it wants predicted, ``encoders`` encode the same anew."""

    config: settings.RunConfig
    stage: Stage
    source: TrainSource
    task: InteractionTask
    start: InteractionModel
    stores: Stores
    encoders: Mapping[Modality, Encoder]

    def batches(self) -> list[list[int]]:
        return [list(range(first, first + BATCH)) for first in range(0, len(self.source), BATCH)]

    def contents(self, numbers: Sequence[int]) -> Mapping[Modality, Sequence[str | Path]]:
        return contents_of([self.source.samples[number] for number in numbers])


def open_run(folder: Path, what: str) -> Run:
    """Fills the cache with ``what`` is wanted, where that was not done yet."""
    names = {m: str(folder / name) for m, name in TEACHERS.items()}
    sets = {"made": {"reader": "native", "root": str(folder / "data")}}
    data = {"sets": sets, "teachers": names if what == "teachers" else {}, "cache": str(folder / "cache")}
    model = {"size": "tiny", "embed_dim": None, "text": {"word_vectors": "none", "tokenizer": "learn"}}
    config = settings.resolve(FAMILY, "guide", {"model": model, "data": data, "train": {"precision": "fp32"}})
    found = FAMILY.sources(config, host := Host(device=DEVICE))
    torch.manual_seed(0)
    task: Any = FAMILY.task(config, FAMILY.facts(config, found))
    source: Any = found.train
    [stage] = [stage for stage in FAMILY.stages(config) if stage.name == STAGES[what]]
    begin_stage(task, begin := Begin(stage, config, found.shared, host, task.state_dict))
    start = copy.deepcopy(task.model)
    if what == "targets":
        towers = {m: TowerEncoder(m, start, source.media, begin) for m in MODALITIES}
        return Run(config, stage, source, task.to(DEVICE), start, source.targets, towers)
    options = EncoderOptions(features="pooled")
    frozen: dict[Modality, Encoder] = {
        m: open_encoder(m, name, options, folder / "cache", DEVICE) for m, name in names.items()
    }
    return Run(config, stage, source, task.to(DEVICE), start, source.teachers, frozen)


def vectors(run: Run, modality: Modality, contents: Sequence[str | Path], *, cached: bool) -> Tensor:
    """What is to be predicted, ``[B, W]``."""
    store, encoder = run.stores[modality], run.encoders[modality]
    if cached:
        keys = [store.key(one) if isinstance(one, str) else run.source.media.keys[one] for one in contents]
        found = [store.get(key).pooled.astype(np.float32) for key in keys]
    else:
        found = [one.pooled for one in encoder.encode([load(encoder, one) for one in contents])]
    return torch.from_numpy(np.stack(found)).to(DEVICE)


def supply(run: Run, way: str) -> dict[str, float]:
    """Rows a second by modality, and of all. Ends the benchmark where vectors are not those of the cache."""
    parts, cached = [run.contents(numbers) for numbers in run.batches()], way == "cached"
    found, total, passes = {}, 0.0, PASSES if cached else 1
    for m in MODALITIES:
        stored, mine = (vectors(run, m, parts[0][m], cached=one) for one in (True, cached))
        if (difference := float((mine - stored).norm() / stored.norm())) > CLOSE:
            raise SystemExit(f"{m}: vectors are {difference:.1e} from those of the cache, relative in norm")
        begun = clock()
        for part in parts * passes:
            vectors(run, m, part[m], cached=cached)
        seconds = (clock() - begun) / passes
        total, found[str(m)] = total + seconds, len(run.source) / seconds
    return {**found, "all": len(run.source) / total}


def epoch(run: Run, ways: Sequence[str]) -> dict[str, float]:
    """Rows a second of steps: loading, forward, backward, clip, AdamW. Ways take turns; a first round is not timed."""
    chosen = select(learnable(run.task), run.stage)
    optimizer = optim.build(chosen, FAMILY.group, run.config.optim, run.stage.lr_scales)
    run.task.train()
    wanted, seconds = "target" if run.stage.name == FULL else "teacher", dict.fromkeys(ways, 0.0)
    for place, (numbers, way) in enumerate(product([run.batches()[0], *run.batches()], ways)):
        setattr(run.source, f"{wanted}s", run.stores if way == "cached" else {})
        begun = clock()
        loaded = run.source.collate([run.source.example(number, number) for number in numbers])
        batch = {name: tensor.to(DEVICE) for name, tensor in loaded.items()}
        if way == "live":
            batch |= {f"{wanted}_{m}": vectors(run, m, c, cached=False) for m, c in run.contents(numbers).items()}
        if way == "own views":
            with torch.no_grad():
                batch |= {f"{wanted}_{m}": z for m, z in embed(run.start, batch).items()}
        run.task(batch).loss.backward()
        nn.utils.clip_grad_norm_(chosen.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds[way] += clock() - begun if place >= len(ways) else 0.0
    return {way: len(run.source) / value for way, value in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=2, help="of 32 rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--arm", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.arm:
        work, what, *way = given.arm
        run = open_run(given.folder, what)
        print(json.dumps(supply(run, way[0]) if work == "supply" else epoch(run, EPOCHS[what])))
        return
    rows = BATCH * given.batches
    with tempfile.TemporaryDirectory() as name:
        (folder := Path(name)).joinpath("data").mkdir()
        make_data(folder / "data", rows, SECONDS)
        make_encoders(folder)
        filled = []
        for what in STAGES:
            begun = clock()
            run = open_run(folder, what)
            filled.append(f"{rows / (clock() - begun):.2f} rows/s of {what}")
        for number in range(rows):
            run.source.example(number, 0)  # writes the small copies of pictures that all arms then read
        arms = [*SUPPLY, *(("epoch", what) for what in EPOCHS)]
        results = side_by_side(__file__, [("--folder", name, "--arm", *arm) for arm in arms], given.repeats)
    found = dict(zip(arms, results, strict=True))
    print(f"{machine()}\n{rows} rows; filling the cache, once, with opening the run: {'; '.join(filled)}")
    lines, gains = [], []
    for what in STAGES:
        cached, live = found["supply", what, "cached"], found["supply", what, "live"]
        for m in (*MODALITIES, "all"):
            gains.append(median(cached, m) / median(live, m))
            lines.append((what, m, spread(cached, m), spread(live, m), f"{gains[-1]:.0f}"))
    print(table(("supply of", "modality", "cached rows/s", "live rows/s", "cached is faster by"), lines), end="\n\n")
    lines = []
    for what, ways in EPOCHS.items():
        mine = found["epoch", what]
        faster = {way: f"{median(mine, 'cached') / median(mine, way):.2f}" for way in ways}
        lines += [(STAGES[what], what, way, spread(mine, way), faster[way]) for way in ways]
    print(table(("epoch of stage", "wanted", "way", "rows/s", "cached is faster by"), lines))
    if min(gains) < WANTED:
        raise SystemExit(f"stored vectors come {min(gains):.1f} times as fast as live ones; {WANTED} is wanted")


if __name__ == "__main__":
    main()
