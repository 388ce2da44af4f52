"""EfficientNet-Lite0: an ImageNet image network of 4.7 million parameters, in plain torch.

Architecture: EfficientNet (Tan and Le 2019, arXiv 1905.11946) in its "lite" form
(github.com/tensorflow/tpu, ``models/official/efficientnet/lite``): no squeeze-and-excitation, ReLU6 for swish, stem
and head not scaled. Parameter names are those of the well-known EfficientNet-PyTorch, so its state dicts load with
``strict=True``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT_SIZE = 224
WIDTH = 1280
CLASSES = 1000
_BN_EPS = 1e-3  # TensorFlow's value, with which the weights were trained

# One row a stage, from table 1 of the paper: blocks, kernel, stride of the first block, expansion, in, out.
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: output size ceil(input / stride), the odd pixel on the far side."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x_BCHW.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x_BCHW, pads))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_BN_EPS)


class Block(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, 1x1 projection without activation."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expands = expansion != 1
        self.residual = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = x_BCHW
        if self.expands:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x_BCHW + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Pixels ``[B, 3, 224, 224]``, as ``(value - 127) / 128`` of 0..255 RGB -> features ``[B, 1280, 7, 7]``."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        self._blocks = nn.ModuleList(
            Block(kernel, stride if first else 1, expansion, inputs if first else outputs, outputs)
            for blocks, kernel, stride, expansion, inputs, outputs in _STAGES
            for first in [True] + [False] * (blocks - 1)
        )
        self._conv_head = nn.Conv2d(320, WIDTH, 1, bias=False)
        self._bn1 = _norm(WIDTH)
        self._fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = F.relu6(self._bn0(self._conv_stem(x_BCHW)))
        for block in self._blocks:
            x_BCHW = block(x_BCHW)
        return F.relu6(self._bn1(self._conv_head(x_BCHW)))

    def classify(self, x_BCHW: Tensor) -> Tensor:
        """ImageNet logits ``[B, 1000]``, classes in the usual order."""
        return torch.as_tensor(self._fc(self(x_BCHW).mean((2, 3))))
