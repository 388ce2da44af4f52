"""Bytes of tensors that are alive, with and without content."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sensorium.parts.live import Live, made_in


@pytest.mark.parametrize("empty", [False, True])
def test_what_is_alive_is_counted_once(empty: bool) -> None:
    with FakeTensorMode() if empty else torch.no_grad():
        known = torch.ones(500)
        with Live([known]) as live:
            made = torch.ones(1000)
            views = [made[:10], made.reshape(10, 100), known[1:], known.view(5, 100)]
            assert (live.now, live.peak) == (4000, 4000)
            other = made + 1
            assert live.now == 8000
            del made, views
            assert (live.now, live.peak) == (4000, 8000)
            del other
            assert (live.now, live.peak) == (0, 8000)
        torch.ones(5000)
        assert live.peak == 8000


def test_what_autograd_keeps_is_alive() -> None:
    weight = torch.ones(100, requires_grad=True)
    weight.grad = torch.zeros(100)
    with Live([weight, weight.grad]) as live:
        loss = weight.exp().sin().sum()
        assert live.now == 4 + 400  # the loss, and what exp gave, which it and sin look at in the backward pass
        loss.backward()
    assert live.now == 4


def test_the_type_of_new_weights_is_set_back() -> None:
    def fail() -> None:
        with made_in(torch.bfloat16):
            assert torch.nn.Linear(2, 2).weight.dtype == torch.bfloat16
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_default_dtype() == torch.float32
