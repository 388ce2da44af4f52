"""How near the memory that `sensorium check climate_text` foresees comes to what a step takes.

    OMP_NUM_THREADS=1 python benchmarks/climate_memory.py --llm SMOLLM2

SMOLLM2: a Hugging Face folder of a causal language model, frozen. Each row runs in a process of its own: the memory of
a step is foreseen (`families/climate_text/memory.py`), then three steps are done over copies of the longest text, one
of them a token shorter, so that there is padding. `measured` is by how much memory grew at most in a forward and
backward pass beside weights, gradients and the optimizer's state: on a GPU what was allocated, on a CPU resident
memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from common import RESIDENT, machine, median, side_by_side, table, words_of

from sensorium import config as configuration
from sensorium import families
from sensorium.engine import settings
from sensorium.engine.backend import Backend
from sensorium.engine.check_memory import read_peak, reset_peak
from sensorium.families.climate_text.data import TrainSource
from sensorium.families.climate_text.memory import demand, longest

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FAMILY = families.load("climate_text")
MEGABYTE = 2**20
ARMS: Mapping[str, Mapping[str, Any]] = {
    "kept tokens": {},
    "kept tokens, checkpointing": {"model": {"gradient_checkpointing": True}},
    "kept tokens, bf16": {"train": {"precision": "bf16"}},
    "fields encoded in each step": {"data": {"cache": False}},
    "grid_vit, trained": {
        "model": {
            **{"climate_encoder": "grid_vit", "random_init": False},
            "grid_vit": {"width": 256, "depth": 4, "heads": 4},
        }
    },
}


def configured(given: argparse.Namespace) -> settings.RunConfig:
    """The run whose step is measured."""
    layer: dict[str, Any] = {
        "model": {
            **{"llm": given.llm, "freeze_llm": True, "climate_encoder": "prithvi", "random_init": True},
            **{"prithvi": {"width": 256, "blocks": 0, "heads": 4}, "num_fusion_layers": given.blocks},
            **{"fusion_width": "auto", "fusion_heads": 8, "gradient_checkpointing": False},
        },
        "data": {"demo": {"num_samples": 8, "shape": [2, 160, 64, 64], "val_fraction": 0.25}},
        "train": {"batch_size": given.rows, "precision": "fp32"},
    }
    return settings.resolve(FAMILY, "tiny", configuration.merge(layer, ARMS[given.arm]))


def run_arm(given: argparse.Namespace) -> None:
    """Foresee and measure one row."""
    config = configured(given)
    with Backend(config.train) as backend:
        found = FAMILY.sources(config, backend.host(quiet=True))
        assert isinstance(found.train, TrainSource)
        parts = demand(config, found, given.rows, DEVICE).parts
        task = FAMILY.task(config, FAMILY.facts(config, found)).to(DEVICE).train()
        batch = found.train.collate([found.train.example(longest(found.train), 0)] * given.rows)
        for name in ("attention_mask", "target_mask"):
            batch[name][-1, -1] = False
        batch = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
        optimizer = torch.optim.AdamW([one for one in task.parameters() if one.requires_grad])
        peak = 0
        for step in range(3):
            if not reset_peak(DEVICE):
                raise SystemExit("peak memory cannot be measured on this system")
            before = read_peak(DEVICE)
            with backend.autocast():
                loss = task(batch).loss
            loss.backward()
            del loss
            peak = read_peak(DEVICE) - before if step else 0  # the first one makes gradients, and imports
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    foreseen = parts["activations"] + parts["backward pass"]
    print(
        json.dumps({"foreseen": foreseen / MEGABYTE, "measured": peak / MEGABYTE, "text": batch["input_ids"].shape[1]})
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="random:tiny", help="folder of a language model")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=2, help="gated ones")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm:
        run_arm(given)
        return
    common = words_of(given, "llm", "rows", "blocks")
    with tempfile.TemporaryDirectory() as folder:
        arms, environment = [[*common, "--arm", arm] for arm in given.arms], {**RESIDENT, "SENSORIUM_CACHE": folder}
        results = side_by_side(__file__, arms, given.repeats, environment)
    rows = []
    for arm, found in zip(given.arms, results, strict=True):
        foreseen, measured = median(found, "foreseen"), median(found, "measured")
        rows.append((arm, f"{foreseen:.0f}", f"{measured:.0f}", f"{foreseen / measured - 1:+.1%}"))
    print(machine())
    print(f"{given.rows} rows of {median(results[0], 'text'):.0f} tokens of text, {given.blocks} gated blocks")
    print(table(("step", "foreseen MiB", "measured MiB", "off"), rows))


if __name__ == "__main__":
    main()
