"""The Inception network of the Fréchet Inception distance, in plain torch: 2,048 numbers of a picture.

Layout and names are those of the published ``pt_inception-2015-12-05`` (TensorFlow's network of 2015, ported by the
pytorch-fid project), which differs from torchvision's in its pooling: averages leave the padding out, and the last
block takes maxima.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from sensorium.errors import DataError

WIDTH, SIDE = 2048, 299
Pool = Callable[[Tensor], Tensor]
_average: Pool = partial(avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_largest: Pool = partial(max_pool2d, kernel_size=3, stride=1, padding=1)
_halved: Pool = partial(max_pool2d, kernel_size=3, stride=2)


@dataclass(frozen=True)
class _Layer:
    """A convolution: its name in the file, channels out, sides of its window; ``halves``: every second place."""

    name: str
    after: int
    size: tuple[int, int] = (1, 1)
    halves: bool = False
    padded: bool = True


@dataclass(frozen=True)
class _Branch:
    """``chain`` of layers behind a pooling, if any; ``forks`` are put side by side behind the chain."""

    chain: tuple[_Layer, ...] = ()
    forks: tuple[_Layer, ...] = ()
    pool: Pool | None = None

    @property
    def layers(self) -> tuple[_Layer, ...]:
        return self.chain + self.forks


def _a(pooled: int) -> tuple[_Branch, ...]:
    return (
        _Branch((_Layer("branch1x1", 64),)),
        _Branch((_Layer("branch5x5_1", 48), _Layer("branch5x5_2", 64, (5, 5)))),
        _Branch(_double()),
        _Branch((_Layer("branch_pool", pooled),), pool=_average),
    )


def _double(*, halves: bool = False) -> tuple[_Layer, ...]:
    return (
        _Layer("branch3x3dbl_1", 64),
        _Layer("branch3x3dbl_2", 96, (3, 3)),
        _Layer("branch3x3dbl_3", 96, (3, 3), halves=halves),
    )


def _c(width: int) -> tuple[_Branch, ...]:
    wide, high = (1, 7), (7, 1)
    return (
        _Branch((_Layer("branch1x1", 192),)),
        _Branch((_Layer("branch7x7_1", width), _Layer("branch7x7_2", width, wide), _Layer("branch7x7_3", 192, high))),
        _Branch(
            (
                _Layer("branch7x7dbl_1", width),
                _Layer("branch7x7dbl_2", width, high),
                _Layer("branch7x7dbl_3", width, wide),
                _Layer("branch7x7dbl_4", width, high),
                _Layer("branch7x7dbl_5", 192, wide),
            )
        ),
        _Branch((_Layer("branch_pool", 192),), pool=_average),
    )


def _e(pool: Pool) -> tuple[_Branch, ...]:
    def forks(name: str) -> tuple[_Layer, ...]:
        return (_Layer(f"{name}a", 384, (1, 3)), _Layer(f"{name}b", 384, (3, 1)))

    return (
        _Branch((_Layer("branch1x1", 320),)),
        _Branch((_Layer("branch3x3_1", 384),), forks("branch3x3_2")),
        _Branch((_Layer("branch3x3dbl_1", 448), _Layer("branch3x3dbl_2", 384, (3, 3))), forks("branch3x3dbl_3")),
        _Branch((_Layer("branch_pool", 192),), pool=pool),
    )


_B = (_Branch((_Layer("branch3x3", 384, (3, 3), halves=True),)), _Branch(_double(halves=True)), _Branch(pool=_halved))
_D = (
    _Branch((_Layer("branch3x3_1", 192), _Layer("branch3x3_2", 320, (3, 3), halves=True))),
    _Branch(
        (
            _Layer("branch7x7x3_1", 192),
            _Layer("branch7x7x3_2", 192, (1, 7)),
            _Layer("branch7x7x3_3", 192, (7, 1)),
            _Layer("branch7x7x3_4", 192, (3, 3), halves=True),
        )
    ),
    _Branch(pool=_halved),
)
_BLOCKS: Mapping[str, tuple[_Branch, ...]] = {
    **{"Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": _B, "Mixed_6b": _c(128)},
    **{"Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192), "Mixed_7a": _D},
    **{"Mixed_7b": _e(_average), "Mixed_7c": _e(_largest)},
}
_STEM = (
    _Layer("Conv2d_1a_3x3", 32, (3, 3), halves=True),
    _Layer("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    _Layer("Conv2d_2b_3x3", 64, (3, 3)),
    _Layer("Conv2d_3b_1x1", 80),
    _Layer("Conv2d_4a_3x3", 192, (3, 3), padded=False),
)
_POOLED_BEFORE = {"Conv2d_3b_1x1", "Mixed_5b"}


class _Unit(nn.Module):
    """Convolution, normalisation, rectifier."""

    def __init__(self, before: int, layer: _Layer) -> None:
        super().__init__()
        height, width = layer.size
        padding = (height // 2, width // 2) if layer.padded and not layer.halves else (0, 0)
        self.conv = nn.Conv2d(before, layer.after, layer.size, 2 if layer.halves else 1, padding, bias=False)
        self.bn = nn.BatchNorm2d(layer.after, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.bn(self.conv(x)).relu()
        return found


class _Mixed(nn.Module):
    """Branches side by side."""

    def __init__(self, before: int, branches: tuple[_Branch, ...]) -> None:
        super().__init__()
        self.branches, self.after = branches, 0
        for branch in branches:
            width = before
            for layer in branch.chain:
                self.add_module(layer.name, _Unit(width, layer))
                width = layer.after
            for layer in branch.forks:
                self.add_module(layer.name, _Unit(width, layer))
            self.after += sum(layer.after for layer in branch.forks) or width

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for branch in self.branches:
            y = x if branch.pool is None else branch.pool(x)
            for layer in branch.chain:
                y = self.get_submodule(layer.name)(y)
            found += [self.get_submodule(layer.name)(y) for layer in branch.forks] or [y]
        return torch.cat(found, 1)


class Inception(nn.Module):
    """``forward``: features ``[B, 2048]`` of pictures ``[B, 3, H, W]`` in 0..1, of any size."""

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for layer in _STEM:
            self.add_module(layer.name, _Unit(width, layer))
            width = layer.after
        for name, branches in _BLOCKS.items():
            block = _Mixed(width, branches)
            self.add_module(name, block)
            width = block.after

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Inception:
        """From the published file. Raises DataError where a weight is missing or has another shape."""
        with torch.random.fork_rng(devices=[]):
            found = cls()
        wanted = {name: value for name, value in found.state_dict().items() if "num_batches" not in name}
        wrong = sorted(name for name in wanted if name not in weights or weights[name].shape != wanted[name].shape)
        if wrong:
            raise DataError(f"no weights of the Inception network: {wrong[0]!r} is missing or has another shape")
        found.load_state_dict({name: weights[name] for name in wanted}, strict=False)
        return found.eval().requires_grad_(False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = 2 * interpolate(x_BCHW, (SIDE, SIDE), mode="bilinear", align_corners=False) - 1
        for name, part in self.named_children():
            x = part(_halved(x) if name in _POOLED_BEFORE else x)
        return x.mean((2, 3))
