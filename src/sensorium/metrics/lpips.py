"""LPIPS with VGG16 (Zhang et al. 2018, version 0.1): how different two pictures look, by a network's activations.

The trunk takes the names of torchvision's ``vgg16`` (``features.0.weight``, …), the head those of the published
``vgg.pth`` (``lin0.model.1.weight``, …), so both files load as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sensorium.errors import DataError

# Convolutions of each block, by the places that torchvision's layers have.
_BLOCKS = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
    ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
    ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
)
WIDTHS = tuple(block[-1][2] for block in _BLOCKS)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_SHORTEST = 16  # pixels a side that survive four halvings


class Lpips(nn.Module):
    """``forward(one, other)``: distances ``[B]`` of pictures ``[B, 3, H, W]`` in -1..1; 0 for equal ones."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [one for block in _BLOCKS for one in block]
        self.features = nn.ModuleDict(
            {str(place): nn.Conv2d(before, after, 3, padding=1) for place, before, after in convolutions}
        )
        self.heads = nn.ParameterList([nn.Parameter(torch.zeros(width)) for width in WIDTHS])
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)

    @classmethod
    def of(cls, vgg: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> Lpips:
        """From the two published files. Raises DataError where a weight is missing or has another shape."""
        with torch.random.fork_rng(devices=[]):
            found = cls()
        trunk = {name: value for name, value in vgg.items() if name.startswith("features.")}
        heads = {f"heads.{number}": head.get(f"lin{number}.model.1.weight") for number in range(len(WIDTHS))}
        given = trunk | {name: value.flatten() for name, value in heads.items() if value is not None}
        wanted = found.state_dict()
        wrong = sorted(name for name in wanted if name not in given or given[name].shape != wanted[name].shape)
        if wrong:
            raise DataError(f"no weights of LPIPS with VGG16: {wrong[0]!r} is missing or has another shape")
        found.load_state_dict({name: given[name] for name in wanted})
        return found.eval().requires_grad_(False)

    def forward(self, one_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
        """Raises DataError where a side is too short for five blocks."""
        if min(one_BCHW.shape[-2:]) < _SHORTEST:
            raise DataError(f"LPIPS needs {_SHORTEST} pixels a side at least (found {tuple(one_BCHW.shape[-2:])})")
        pairs = zip(self._activations(one_BCHW), self._activations(other_BCHW), self.heads, strict=True)
        return torch.stack(
            [((one - other).square() * head[:, None, None]).sum(1).mean((1, 2)) for one, other, head in pairs]
        ).sum(0)

    def _activations(self, x_BCHW: Tensor) -> list[Tensor]:
        """Of each block, every place's vector at length 1."""
        x, found = (x_BCHW - self.shift) / self.scale, []
        for number, block in enumerate(_BLOCKS):
            if number:
                x = nn.functional.max_pool2d(x, 2)
            for place, *_ in block:
                x = self.features[str(place)](x).relu()
            found.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return found
