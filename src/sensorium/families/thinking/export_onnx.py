"""Export of the trained towers to ONNX: one file a modality, from frozen features to the unit embedding.

Legend: B rows, N tokens of a row, E and P widths of an encoder's tokens and of its pooled vector, D width.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sensorium import exported
from sensorium.data.items import Modality
from sensorium.engine.contract import Loaded
from sensorium.errors import ConfigError, RunError
from sensorium.families.thinking import losses
from sensorium.families.thinking.export import Parts, parts_of, write_card
from sensorium.families.thinking.model import EncoderFacts, Pass
from sensorium.families.thinking.task import ThinkingTask

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUTS, OUTPUT = ("tokens", "mask", "pooled"), "embedding"
TOLERANCE = 1e-4  # largest difference from torch; float32 sums in another order give some 1e-6
SHAPES = ((1, 1), (2, 5), (7, 64), (3, 400))  # (rows, tokens) of the numeric check; none is the one traced with
_TRACED = (4, 6)
# Said by torch and onnxscript about themselves.
_CHATTER = ("torch.onnx", "onnxscript.optimizer")
_OWN_WARNING = r"`isinstance\(treespec, LeafSpec\)` is deprecated"


class Tower(nn.Module):
    """What a file holds: ``tokens`` ``[B, N, E]``, ``mask`` ``[B, N]`` bool, ``pooled`` ``[B, P]`` -> ``[B, D]``.

    It is the unimodal pass of ``ThinkingTask.embed``: unit length; a row without a token gives zeros.
    """

    def __init__(self, task: ThinkingTask, modality: Modality) -> None:
        super().__init__()
        self.model, self.modality, self.steps = task.model, modality, task.config.think_steps

    def forward(self, tokens: Tensor, mask: Tensor, pooled: Tensor) -> Tensor:
        keep = mask.any(dim=1)
        batch = dict(zip((f"{self.modality}_{name}" for name in INPUTS), (tokens, mask, pooled), strict=True))
        features = self.model.features(batch, [self.modality], self.steps)
        [read] = self.model.read(features, [Pass({self.modality: keep})], self.steps)
        return losses.unit(read).masked_fill(~keep[:, None], 0.0)


def write_onnx(loaded: Loaded, folder: Path) -> str:
    """Write ``<modality>.onnx``, ``config.json`` and ``README.md`` into ``folder``.

    Raises ConfigError when a package is missing, RunError when a file does not give what torch gives.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"export to ONNX needs {', '.join(missing)}; run: pip install 'sensorium[onnx]'")
    parts = parts_of(loaded)
    files: dict[str, Any] = {}
    for modality, fact in parts.task.facts.items():
        path = folder / f"{modality}.onnx"
        difference = tower_to_onnx(Tower(parts.task, modality).eval(), fact, path)
        files[path.name] = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "inputs": {
                "tokens": ["batch", "tokens", fact.width],
                "mask": ["batch", "tokens"],
                "pooled": ["batch", fact.pooled_width],
            },
            "max_abs_difference": difference,
        }
    content = exported.describe(parts.loaded, "onnx", parts.data, parts.facts)
    exported.write_config(folder, {**content, "files": files})
    write_card(folder, parts, _running(parts, files))
    worst = max(record["max_abs_difference"] for record in files.values())
    return f"{', '.join(files)}; largest difference from torch {worst:.1e} over {len(SHAPES)} shapes each"


def tower_to_onnx(tower: Tower, fact: EncoderFacts, path: Path) -> float:
    """Write one tower and give its largest difference from torch. Raises RunError when that is above ``TOLERANCE``."""
    _convert(tower, fact).save(path, include_initializers=True, external_data=False)
    difference = largest_difference(tower, fact, path)
    if not difference <= TOLERANCE:  # also NaN
        raise RunError(
            f"{path.name} differs from torch by {difference:.1e} (allowed {TOLERANCE:.0e}); nothing was written. "
            "Other versions of torch and onnxruntime may agree; constraints.txt names those that were tested"
        )
    return difference


def _convert(tower: Tower, fact: EncoderFacts) -> Any:
    """The tower as an ONNX program with batch and token axes of any length, float32, no trace of this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    dynamic = {"tokens": {0: batch, 1: tokens}, "mask": {0: batch, 1: tokens}, "pooled": {0: batch}}
    names: dict[str, dict[int, str]] = {"tokens": {0: "batch", 1: "tokens"}, "mask": {}, "pooled": {}}  # each once
    with torch.no_grad(), _quiet():
        # strict: len() of a tensor stays symbolic; without it the number of rows would become a constant.
        traced = torch.export.export(tower, _features(fact, *_TRACED), dynamic_shapes=dynamic, strict=True)
        program = torch.onnx.export(
            traced, input_names=INPUTS, output_names=[OUTPUT], dynamic_shapes=names, verbose=False
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # stack traces with paths of this machine
    return program


def largest_difference(tower: Tower, fact: EncoderFacts, path: Path) -> float:
    """Largest absolute difference between the file and torch over all ``SHAPES``, with masks."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = []
    for rows, length in SHAPES:
        given = _features(fact, rows, length)
        with torch.inference_mode():
            expected = tower(*given).numpy()
        feeds = {name: tensor.numpy() for name, tensor in zip(INPUTS, given, strict=True)}
        worst.append(np.abs(session.run([OUTPUT], feeds)[0] - expected).max())
    return float(np.max(worst))  # NaN wins


def _features(fact: EncoderFacts, rows: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random features; the rows have different numbers of tokens, the first all of them, the last of several none."""
    generator = torch.Generator().manual_seed(rows * 1009 + length)
    mask = torch.rand(rows, length, generator=generator) < 0.7
    mask[0] = True
    if rows > 1:
        mask[-1] = False
    tokens = torch.randn(rows, length, fact.width, generator=generator)
    return tokens, mask, torch.randn(rows, fact.pooled_width, generator=generator)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself: packages that are not needed, a deprecation inside torch."""
    levels = {name: logging.getLogger(name).level for name in _CHATTER}
    for name in _CHATTER:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _OWN_WARNING, FutureWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _running(parts: Parts, files: dict[str, Any]) -> str:
    modality, encoder = next(iter(parts.encoders.items()))
    lines = [
        f"- `{name}`: `tokens` float32 [batch, tokens, {record['inputs']['tokens'][-1]}], `mask` bool [batch, tokens], "
        f"`pooled` float32 [batch, {record['inputs']['pooled'][-1]}] -> `{OUTPUT}` float32; "
        f"largest difference from torch {record['max_abs_difference']:.1e}"
        for name, record in files.items()
    ]
    return (
        "One file a modality, from the features of the frozen encoder (not in here, see below) to an embedding of unit "
        "length. The mask is true where there is a token; a row without any gives zeros. `tokens` and `pooled` are the "
        "encoder's last hidden states and its pooled vector, as `config.json` describes them.\n\n"
        + "\n".join(lines)
        + "\n\n```python\nimport onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{modality}.onnx")\n'
        '[embedding] = session.run(None, {"tokens": tokens, "mask": mask, "pooled": pooled})\n```\n\n'
        f"`sensorium` makes the features (`sensorium.load(RUN).encoders`, for {modality} `{encoder.name}`), or any "
        "program that follows the same steps. The towers share most of their weights; each file holds all it needs."
    )
