"""A training step of `pmg`, in the guide's setting and in ours: seconds, peak memory, and that the loss is the same.

    OMP_NUM_THREADS=1 python benchmarks/pmg_step.py --llm SMOLLM2 --stable-diffusion runs/pmg_emoji/stable_diffusion \
        --data runs/pmg_emoji/world/train.json --image 64 --rows 2
    python benchmarks/pmg_step.py       # seconds: random models, made-up data

Row by row something is added to the guide's setting, which pads every prompt to 600 tokens and encodes pictures and
captions anew in every step; the last row leaves out the prefix, so that the text is read without gradient, and its loss
is its own. Data, weights and noise are the same in all rows. A step is: samples, forward and backward pass, AdamW. Each
row runs in a process of its own; the first step is for warming up, memory is that of the others: on a GPU what was
allocated at most, on a CPU by how much resident memory grew at most from before the model was loaded. The loss is that
of the first step, and `off` how far it is from that of the first row, as a share of it. Caches hold numbers of 16 bits,
as they do in training.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from common import RESIDENT, clock, machine, median, side_by_side, table, words_of

from sensorium import families
from sensorium.data.feature_keys import Content
from sensorium.data.features import Features, LiveFeatures
from sensorium.engine import settings
from sensorium.engine.backend import Backend
from sensorium.engine.check_memory import read_peak, reset_peak
from sensorium.engine.contract import Batch
from sensorium.engine.seeds import derive
from sensorium.families.pmg.conditioning import lengths_of
from sensorium.families.pmg.data import Split, TrainSource
from sensorium.families.pmg.encoders import TextStates, VaeMoments
from sensorium.families.pmg.task import folder_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LATENTS, CAPTIONS = "latents", "captions"
BOTH = frozenset({LATENTS, CAPTIONS})
# Row: settings of the model, and what is cached.
GUIDE, NO_PREFIX = "600 tokens, no caches", "no prefix"
ARMS: Mapping[str, tuple[Mapping[str, Any], frozenset[str]]] = {
    GUIDE: ({"pad_to": "max"}, frozenset()),
    "longest prompt": ({}, frozenset()),
    "+ latents cached": ({}, frozenset({LATENTS})),
    "+ captions cached": ({}, BOTH),
    "+ checkpointing": ({"gradient_checkpointing": True}, BOTH),
    NO_PREFIX: ({"num_prefix_prompt": 0}, BOTH),
}
FAMILY = families.load("pmg")
GIGABYTE = 2**30


class Anew(LiveFeatures):
    """Encodes a whole batch when it is told to."""

    def encode(self, contents: Sequence[Content]) -> None:
        keys = self.keys(contents)
        self._now = dict(zip(keys, self.finish([self.prepare(key) for key in keys]), strict=True))

    def get(self, key: str) -> Features:
        return self._now[key]


def configured(given: argparse.Namespace) -> settings.RunConfig:
    """The run whose step is measured; random models and made-up data where none are given."""
    preset = "recommended" if given.llm else "tiny"
    named = {"llm": given.llm, "stable_diffusion": given.stable_diffusion} if given.llm else {}
    data = {"train_json": given.data} if given.llm else {}
    model = {**named, **ARMS[given.arm][0], "snr_gamma": None}
    content = {
        "model": model,
        "data": {**data, "image_size": given.image},
        "train": {"precision": given.precision, "batch_size": given.rows, "micro_batches": 1},
    }
    return settings.resolve(FAMILY, preset, content)


def batches(split: Split, task: Any, given: argparse.Namespace) -> Callable[[int], Batch]:
    """The batch of a step; what is not cached is encoded in it."""
    kept = ARMS[given.arm][1]
    folder, shape, data = folder_of(task), split.frozen.shape, given.image
    length = lengths_of(split.model.conditioning, shape.text_length, split.model.num_image_prompt).target
    pictures = None if LATENTS in kept else Anew(VaeMoments(folder, shape, data, "squash", DEVICE))
    captions = None if CAPTIONS in kept else Anew(TextStates(folder, shape, length, DEVICE))
    stores: dict[str, Any] = {
        name: store for name, store in (("pictures", pictures), ("captions", captions)) if store is not None
    }
    frozen: Any = replace(split.frozen, **stores)
    source = TrainSource(replace(split, frozen=frozen))

    def batch(step: int) -> Batch:
        rows = [(step * given.rows + row) % len(source) for row in range(given.rows)]
        liked = [split.tastes[row].target for row in rows]
        if pictures is not None:
            pictures.encode([one.path for one in liked])
        if captions is not None:
            captions.encode([one.caption for one in liked])
        return source.collate([source.example(row, derive(0, "benchmark", row)) for row in rows])

    return batch


def run_arm(given: argparse.Namespace) -> None:
    """Measure one row."""
    config = configured(given)
    with Backend(config.train) as backend:
        found = FAMILY.sources(config, backend.host(quiet=True))
        if not reset_peak(torch.device(DEVICE)):
            raise SystemExit("peak memory cannot be measured on this system")
        before = read_peak(torch.device(DEVICE))
        torch.manual_seed(0)
        task = FAMILY.task(config, FAMILY.facts(config, found)).to(DEVICE).train()
    assert isinstance(found.train, TrainSource)
    batch_of = batches(found.train.split, task, given)
    optimizer = torch.optim.AdamW([one for one in task.parameters() if one.requires_grad], lr=1e-3)
    losses, seconds, tokens = [], [], []
    for step in range(given.steps + 1):
        begun = clock()
        batch = {name: tensor.to(DEVICE) for name, tensor in batch_of(step).items()}
        loss = task(batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(clock() - begun)
        losses.append(float(loss.detach()))
        tokens.append(int(np.mean(batch["text_mask"].sum(1).tolist())))
        if step == 0:
            reset_peak(torch.device(DEVICE))
    peak = (read_peak(torch.device(DEVICE)) - before) / GIGABYTE
    spent = statistics.median(seconds[1:])
    print(json.dumps({"seconds": spent, "gigabytes": peak, "loss": losses[0], "tokens": statistics.mean(tokens)}))


def asked() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", help="folder of a language model; without it all models are random")
    parser.add_argument("--stable-diffusion", help="folder of diffusers; needed with --llm")
    parser.add_argument("--data", help="processed samples; needed with --llm")
    parser.add_argument("--image", type=int, default=64, help="pixels a side")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="measured, after one more")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.llm and not (given.stable_diffusion and given.data):
        parser.error("--llm needs --stable-diffusion and --data")
    return given


def main() -> None:
    given = asked()
    if given.arm:
        run_arm(given)
        return
    common = words_of(given, "llm", "stable_diffusion", "data", "image", "rows", "steps", "precision")
    results = side_by_side(__file__, [["--arm", arm, *common] for arm in given.arms], given.repeats, RESIDENT)
    first = results[0]
    rows = []
    for arm, found in zip(given.arms, results, strict=True):
        seconds, peak, loss = (median(found, key) for key in ("seconds", "gigabytes", "loss"))
        faster, smaller = median(first, "seconds") / seconds, median(first, "gigabytes") / peak
        off = abs(loss / median(first, "loss") - 1)
        rows.append(
            (arm, f"{seconds:.2f}", f"{faster:.2f}", f"{peak:.2f}", f"{smaller:.2f}", f"{loss:.6f}", f"{off:.1e}")
        )
    print(machine())
    tokens = median(first, "tokens")
    print(f"{given.rows} rows, {tokens:.0f} tokens of text in the mean, {given.image} px, {given.precision}")
    print(table(("step", "seconds", "faster", "peak GiB", "smaller", "loss", "off"), rows))


if __name__ == "__main__":
    main()
