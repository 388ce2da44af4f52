"""How near the memory that `sensorium check pmg` foresees comes to what a step takes.

    OMP_NUM_THREADS=1 python benchmarks/pmg_memory.py
    python benchmarks/pmg_memory.py --llm SMOLLM2 --stable-diffusion FOLDER --data train.json --image 64

Without --llm the models are random and of middle size, so that libraries and rounding do not count for much; the data
are made up. Each row runs in a process of its own: the memory of a step is foreseen (`families/pmg/memory.py`), then
the models are loaded, and three steps of forward pass, backward pass and AdamW are done. `measured` is by how much
memory grew at most from before the models were loaded: on a GPU what was allocated, on a CPU resident memory, after a
small step of the same kind, so that no library is counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from common import RESIDENT, machine, median, side_by_side, table, words_of

from sensorium import families
from sensorium.engine import settings
from sensorium.engine.backend import Backend
from sensorium.engine.check_memory import read_peak, reset_peak
from sensorium.engine.contract import Host
from sensorium.engine.seeds import derive
from sensorium.families.pmg import tiny
from sensorium.families.pmg.data import TrainSource
from sensorium.families.pmg.task import FROZEN_DTYPES

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Row: settings of the model, and rows of the batch.
ARMS: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "4 rows": ({}, 4),
    "8 rows": ({}, 8),
    "4 rows, padded to 300": ({"pad_to": "max", "max_sequence_length": 300}, 4),
    "8 rows, checkpointing": ({"gradient_checkpointing": True}, 8),
    "4 rows, no prefix": ({"num_prefix_prompt": 0}, 4),
    "4 rows, preference loss": ({"negative": {"weight": 0.5, "kind": "user"}}, 4),
}
FAMILY = families.load("pmg")


def write_models(root: Path, dtype: torch.dtype) -> None:
    """A language model and a Stable Diffusion as folders, in the numbers that they are loaded in."""
    from diffusers import UNet2DConditionModel
    from transformers import LlamaConfig, LlamaModel

    for name, write in (("llm", tiny.write_llm), ("stable_diffusion", tiny.write_diffusion)):
        (root / name).mkdir(parents=True)
        write(root / name)
    config = LlamaConfig(
        vocab_size=tiny.LLM_TOKENS, hidden_size=512, intermediate_size=1408, num_hidden_layers=10,
        num_attention_heads=8, num_key_value_heads=4, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaModel(config).to(dtype).save_pretrained(root / "llm")
    unet = UNet2DConditionModel(
        sample_size=32, block_out_channels=(96, 192, 384), cross_attention_dim=32, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=2,
    )  # fmt: skip
    unet.to(dtype).save_pretrained(root / "stable_diffusion" / "unet")


def configured(given: argparse.Namespace, model: Mapping[str, Any], rows: int) -> settings.RunConfig:
    """The run whose step is measured."""
    data = {"train_json": given.data} if given.data else {"toy": {"side": 64}}
    named = {"llm": given.llm, "stable_diffusion": given.stable_diffusion, **model}
    content = {
        "model": named,
        "data": {**data, "image_size": given.image},
        "train": {"precision": given.precision, "batch_size": rows, "micro_batches": 1},
    }
    return settings.resolve(FAMILY, "recommended", content)


def steps(config: settings.RunConfig, rows: int) -> dict[str, float]:
    """Foresee, then do."""
    device = torch.device(DEVICE)
    with Backend(config.train) as backend:
        found = FAMILY.sources(config, Host(DEVICE))
        assert FAMILY.demand is not None
        foreseen = FAMILY.demand(config, found, rows, device)
        assert isinstance(found.train, TrainSource)
        lengths = found.train.split.questions
        longest = max(range(len(lengths)), key=lambda one: len(lengths[one]))
        facts = FAMILY.facts(config, found)
        if not reset_peak(device):
            raise SystemExit("peak memory cannot be measured on this system")
        before = read_peak(device)
        task = FAMILY.task(config, facts).to(device).train()
        reset_peak(device)  # loading is none of a step
        optimizer = torch.optim.AdamW([one for one in task.parameters() if one.requires_grad], lr=1e-3)
        for step in range(3):
            examples = [found.train.example(longest, derive(0, step, row)) for row in range(rows)]
            batch = {name: tensor.to(device) for name, tensor in found.train.collate(examples).items()}
            with backend.autocast():
                loss = task(batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        measured = read_peak(device) - before
    parts = {f"part {name}": size for name, size in foreseen.parts.items()}
    return {"foreseen": foreseen.total, "measured": measured, **parts}


def run_arm(given: argparse.Namespace) -> None:
    """Measure one row."""
    model, rows = ARMS[given.arm]
    small = argparse.Namespace(**{**vars(given), "llm": "random:tiny", "stable_diffusion": "random:tiny", "data": None})
    steps(configured(argparse.Namespace(**{**vars(small), "image": 64}), model, 4), 4)
    print(json.dumps(steps(configured(given, model, rows), rows)))


def asked() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", help="folder of a language model; without it all models are random")
    parser.add_argument("--stable-diffusion", help="folder of diffusers; needed with --llm")
    parser.add_argument("--data", help="processed samples; without them made-up ones")
    parser.add_argument("--image", type=int, default=256, help="pixels a side")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if bool(given.llm) != bool(given.stable_diffusion):
        parser.error("--llm and --stable-diffusion go together")
    return given


def main() -> None:
    given = asked()
    if given.arm:
        run_arm(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        if given.llm is None:
            write_models(Path(folder), FROZEN_DTYPES[given.precision])
            given.llm, given.stable_diffusion = str(Path(folder) / "llm"), str(Path(folder) / "stable_diffusion")
        common = words_of(given, "llm", "stable_diffusion", "data", "image", "precision")
        results = side_by_side(__file__, [["--arm", arm, *common] for arm in given.arms], given.repeats, RESIDENT)
    rows = []
    for arm, found in zip(given.arms, results, strict=True):
        foreseen, measured = median(found, "foreseen"), median(found, "measured")
        rows.append((arm, f"{foreseen / 1e6:,.0f}", f"{measured / 1e6:,.0f}", f"{foreseen / measured - 1:+.1%}"))
    print(machine())
    print(table((f"step, {given.precision}, {given.image} px", "foreseen MB", "measured MB", "error"), rows))


if __name__ == "__main__":
    main()
