"""Metrics of generated pictures, against numbers of other people's implementations.

The numbers were computed with scikit-image 0.26.0 (SSIM), the packages lpips 0.1.4 and pytorch-fid 0.3.0 with the same
weights, drawn below. Tolerances are those of float32 through twenty layers; SSIM and distances are float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from sensorium.errors import DataError
from sensorium.metrics.generation import frechet_distance, ssim
from sensorium.metrics.inception import WIDTH, Inception
from sensorium.metrics.lpips import WIDTHS, Lpips


def made(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Weights by name, each from its own generator, of a size that signals survive."""
    found = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        generator = torch.Generator().manual_seed(seed + number)
        if name.endswith(("running_var", "bn.weight")):
            found[name] = torch.rand(shape, generator=generator) + 0.5
        elif len(shape) == 4:
            found[name] = torch.randn(shape, generator=generator) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        else:
            found[name] = torch.randn(shape, generator=generator) * 0.1
    return found


def waves() -> tuple[Tensor, Tensor]:
    """Two pictures ``[1, 3, 48, 40]`` that are alike."""
    y, x = np.mgrid[0:48, 0:40]
    one = np.stack([np.sin(x / 5) * 0.5 + 0.5, np.cos(y / 7) * 0.5 + 0.5, ((x + y) % 9) / 8])
    other = np.clip(one * 0.8 + 0.1 * np.cos(x * y / 50) + 0.05, 0, 1)
    return torch.from_numpy(one)[None], torch.from_numpy(other)[None]


def test_ssim_is_that_of_scikit_image() -> None:
    one, other = waves()
    assert float(ssim(one, other)) == pytest.approx(0.7804426970540247, abs=1e-10)
    assert float(ssim(other, one)) == pytest.approx(0.7804426970540247, abs=1e-10)
    both = ssim(torch.cat([one, other]), torch.cat([other, other]))
    assert both.tolist() == pytest.approx([0.7804426970540247, 1.0], abs=1e-10)  # a picture alone, and with others


def test_ssim_of_a_picture_with_itself_is_1_and_of_black_with_white_near_0() -> None:
    """The published code takes pictures of 0..1 for such of 0..255: there black and white are alike."""
    one, _ = waves()
    black, white = torch.zeros_like(one), torch.ones_like(one)
    assert float(ssim(one, one)) == pytest.approx(1, abs=1e-12)
    assert float(ssim(black, black)) == pytest.approx(1, abs=1e-12)
    assert float(ssim(black, white)) == pytest.approx(9.999e-05, rel=1e-6)
    with pytest.raises(DataError, match=r"two pictures of one size, 11 pixels a side at least \(found \(48, 40\)"):
        ssim(one, one[..., :10])
    with pytest.raises(DataError, match="11 pixels a side at least"):
        ssim(one[..., :10], one[..., :10])


def test_the_frechet_distance_is_that_of_pytorch_fid() -> None:
    """``calculate_frechet_distance`` of pytorch-fid, with more rows than numbers and with fewer."""
    drawn = torch.Generator().manual_seed(5)
    torch.rand((2, 3, 48, 64), generator=drawn)
    one = torch.randn((40, 6), generator=drawn)
    other = torch.randn((30, 6), generator=drawn) * 1.5 + 0.3
    assert frechet_distance(one, other) == pytest.approx(3.124345199350408, rel=1e-5)
    assert frechet_distance(one[:4], other[:5]) == pytest.approx(5.642831375067908, rel=1e-4)
    assert frechet_distance(one, one.flip(0)) == pytest.approx(0, abs=1e-9)
    moved = frechet_distance(one, one + torch.tensor([3.0, 0, 0, 0, 0, 4.0]))
    assert moved == pytest.approx(25, rel=1e-6)  # the same shape elsewhere: the distance of the means
    with pytest.raises(DataError, match=r"two pictures a side \(found 1 and 30\)"):
        frechet_distance(one[:1], other)


def test_inception_gives_the_features_of_pytorch_fid() -> None:
    shapes = {name: tuple(value.shape) for name, value in Inception().state_dict().items() if "num_batch" not in name}
    weights = made(shapes, 0)
    network = Inception.of(weights | {"fc.bias": torch.zeros(1008)})  # the published file has the classifier, too
    pictures = torch.rand((2, 3, 48, 64), generator=torch.Generator().manual_seed(5))
    found = network(pictures)
    assert found.shape == (2, WIDTH)
    assert float(found.sum()) == pytest.approx(12171.3125, rel=1e-4)
    assert found[0, :3].tolist() == pytest.approx([0.30400899, 0.16248360, 0.03870257], rel=1e-3)
    del weights["Mixed_7c.branch_pool.bn.running_var"]
    with pytest.raises(DataError, match=r"'Mixed_7c\.branch_pool\.bn\.running_var' is missing"):
        Inception.of(weights)


def test_lpips_is_that_of_its_package() -> None:
    shapes = {name: tuple(value.shape) for name, value in Lpips().state_dict().items() if name.startswith("features")}
    trunk = made(shapes, 100)
    head = {f"lin{n}.model.1.weight": torch.linspace(0, 1, width).view(1, -1, 1, 1) for n, width in enumerate(WIDTHS)}
    network = Lpips.of(trunk | {"classifier.0.bias": torch.zeros(4096)}, head)
    drawn = torch.Generator().manual_seed(6)
    one, other = (torch.rand((2, 3, 32, 48), generator=drawn) * 2 - 1 for _ in range(2))
    assert network(one, other).tolist() == pytest.approx([0.7449719, 0.7602059], rel=1e-4)
    assert network(one, one).tolist() == [0, 0]
    with pytest.raises(DataError, match="16 pixels a side at least"):
        network(one[..., :8], other[..., :8])
    with pytest.raises(DataError, match=r"'heads\.4' is missing"):
        Lpips.of(trunk, {name: value for name, value in head.items() if "lin4" not in name})
