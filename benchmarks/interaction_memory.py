"""Peak memory of a training step of `interaction`, by size: plain, with gradient checkpointing, with chunked attention.

    OMP_NUM_THREADS=1 python benchmarks/interaction_memory.py --sizes tiny small --rows 2
    python benchmarks/interaction_memory.py                     # on a GPU: all sizes, 8 rows, 224 px, fp16

One step is a forward pass with all three modalities and all outputs, a backward pass and an AdamW step; the second one
is measured, when the optimizer has its state. Each arm runs in a process of its own. On a GPU the number is what was
allocated at most; on a CPU by how much resident memory grew at most, from before the model was built (and after a step
of a very small one, which loads what PyTorch loads late). "weights" is what the step cannot do without: weights,
gradients and two moments, 16 bytes a parameter; "above" is what the peak is above that. (The gradients of most weights
are not there yet while all activations are, so these take more than "above".)

Kernels: `fused` lets PyTorch choose, and where it has a kernel that takes the mask (CPU, CUDA) chunks are not used;
`plain` forbids those kernels, as on a machine without them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import product

import torch
from common import RESIDENT, machine, median, side_by_side, spread, table, words_of
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sensorium import config as configuration
from sensorium.engine.check_memory import read_peak, reset_peak
from sensorium.families.interaction.config import SHAPES, ModelConfig, Shape
from sensorium.families.interaction.model import InteractionModel
from sensorium.parts.contrastive import Temperature

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ARMS = {"plain": (False, False), "checkpoint": (True, False), "chunk": (False, True), "both": (True, True)}
KERNELS = ("fused", "plain")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
GIGABYTE = 2**30


def make_batch(config: ModelConfig, rows: int, frames: int) -> dict[str, Tensor]:
    """Full rows: nothing is padded, so that lengths are what they claim to be."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "images": torch.randn(rows, 3, config.image_size, config.image_size, generator=generator),
        "input_ids": torch.randint(0, config.vocab, (rows, config.max_tokens), generator=generator),
        "attention_mask": torch.ones(rows, config.max_tokens, dtype=torch.bool),
        "audio": torch.randn(rows, frames, config.mel_bands, generator=generator),
        "audio_mask": torch.ones(rows, frames, dtype=torch.bool),
    }
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def step_of(model: InteractionModel, batch: dict[str, Tensor], precision: torch.dtype | None) -> Callable[[], float]:
    """A training step with a loss over all outputs; gives its seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> float:
        begun = time.perf_counter()
        with torch.autocast(DEVICE.type, precision or torch.bfloat16, enabled=precision is not None):
            outputs = model(**batch)
        loss = torch.stack([x.float().square().mean() for x in outputs.values()]).sum()
        for part in model.temperatures.values():
            assert isinstance(part, Temperature)
            loss = loss + part.scale()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    return step


def take_step(config: ModelConfig, given: argparse.Namespace, rows: int) -> tuple[int, float]:
    """Build a model and train two steps; gives its parameters and the seconds of the faster step."""
    with DEVICE:
        model = InteractionModel(config)
    step = step_of(model, make_batch(config, rows, given.frames), PRECISIONS[given.precision])
    return sum(parameter.numel() for parameter in model.parameters()), min(step() for _ in range(2))


def run_arm(given: argparse.Namespace) -> None:
    use_checkpoint, chunked = ARMS[given.arm]
    content = {
        "size": given.size,
        "image_size": given.image,
        "max_tokens": given.tokens,
        "use_checkpoint": use_checkpoint,
        "attention_chunk": given.chunk if chunked else None,
    }
    config = configuration.build(ModelConfig, content)
    kernels: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if given.kernel == "plain" else nullcontext()
    with kernels:
        shape = Shape(width=16, heads=2, vision_blocks=1, text_blocks=1, audio_blocks=1, fusion_layers=1, word_width=8)
        take_step(config.model_copy(update={"size": "custom", "shape": shape, "vocab": 32}), given, 1)
        if not reset_peak(DEVICE):
            raise SystemExit("peak memory cannot be measured on this system")
        before = read_peak(DEVICE)
        parameters, seconds = take_step(config, given, given.rows)
    gigabytes = (read_peak(DEVICE) - before) / GIGABYTE
    print(json.dumps({"gigabytes": gigabytes, "weights": 16 * parameters / GIGABYTE, "seconds": seconds}))


def asked() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--image", type=int, default=224, help="height and width of pictures")
    parser.add_argument("--tokens", type=int, default=128, help="length of texts")
    parser.add_argument("--frames", type=int, default=1024, help="length of sounds, in mel frames")
    parser.add_argument("--chunk", type=int, default=32, help="queries at a time")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32" if DEVICE.type == "cpu" else "fp16")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=SHAPES, help=argparse.SUPPRESS)
    parser.add_argument("--kernel", choices=KERNELS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = asked()
    if given.arm:
        run_arm(given)
        return
    common = words_of(given, "rows", "image", "tokens", "frames", "chunk", "precision")
    cells = list(product(given.sizes, given.kernels, ARMS))
    arms = [["--size", size, "--kernel", kernel, "--arm", arm, *common] for size, kernel, arm in cells]
    found = dict(zip(cells, side_by_side(__file__, arms, given.repeats, RESIDENT), strict=True))
    rows = []
    for (size, kernel, arm), results in found.items():
        plain = found[size, kernel, "plain"]
        weights = median(results, "weights")
        above, of_plain = (median(some, "gigabytes") - weights for some in (results, plain))
        slower = median(results, "seconds") / median(plain, "seconds")
        peak = spread(results, "gigabytes")
        rows.append(
            (
                size,
                kernel,
                arm,
                peak,
                f"{weights:.2f}",
                f"{above:.2f}",
                f"{above / of_plain:.2f}",
                f"{slower:.2f}",
            )
        )
    print(machine())
    print(
        f"{given.rows} rows, {given.image} px, {given.tokens} tokens, {given.frames} frames, {given.precision}, "
        f"chunks of {given.chunk}"
    )
    columns = ("size", "kernels", "arm", "peak GiB", "weights", "above", "of plain", "time of plain")
    print(table(columns, rows))


if __name__ == "__main__":
    main()
