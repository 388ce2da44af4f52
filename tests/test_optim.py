"""Optimizers of ours, and parameter groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sensorium.engine import optim
from sensorium.engine.settings import Group, Optim
from sensorium.errors import ConfigError


def group_of(name: str, parameter: nn.Parameter) -> str:
    return name.partition(".")[0] + ("" if parameter.ndim >= 2 else "_no_decay")


def weights() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    shapes = {"tempme.w": (3, 2), "tempme.b": (3,), "stop.w": (2, 2), "stop.b": (2,)}
    return {name: nn.Parameter(torch.randn(shape, dtype=torch.float64)) for name, shape in shapes.items()}


def test_bertadam_by_hand() -> None:
    """Numbers one by one: no bias correction (the first step is larger by 1 / sqrt(1 - 0.98) * (1 - 0.9) than AdamW's),
    decay beside the ratio and not within the gradient."""
    settings = Optim(name="bertadam", lr=0.1, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    ours = weights()
    optimizer = optim.build(ours, group_of, settings, {})
    w, m, v = ours["stop.w"][0, 0].item(), 0.0, 0.0
    for step in range(4):
        for parameter in ours.values():
            parameter.grad = torch.full_like(parameter, 0.5 - step)
        ours["tempme.b"].grad = None
        before = ours["tempme.b"].clone()
        optim.set_rates(optimizer, 0.1 / (step + 1))
        optimizer.step()
        g = 0.5 - step
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        w -= 0.1 / (step + 1) * (m / (math.sqrt(v) + 1e-6) + 0.2 * w)
        assert ours["stop.w"][0, 0].item() == pytest.approx(w, rel=1e-12)
        assert torch.equal(ours["tempme.b"], before)  # nothing without a gradient moves or is decayed


def test_bertadam_goes_on_from_its_state() -> None:
    settings = Optim(name="bertadam", lr=0.1)

    def steps(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            for parameter in parameters.values():
                parameter.grad = (parameter.detach() + number).sin()
            optimizer.step()

    whole = weights()
    steps(whole, optim.build(whole, group_of, settings, {}), range(4))
    parts = weights()
    first = optim.build(parts, group_of, settings, {})
    steps(parts, first, range(2))
    second = optim.build(parts, group_of, settings, {})
    optim.import_state(second, parts, optim.export_state(first, parts))
    steps(parts, second, range(2, 4))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_settings_of_groups_by_name_and_pattern() -> None:
    groups = {"stop_no_decay": Group(lr_scale=3.0, weight_decay=0.5), "stop*": Group(lr_scale=2.0)}
    settings = Optim(lr=0.1, weight_decay=0.2, groups=groups)
    optimizer = optim.build(weights(), group_of, settings, {})
    found = {g["name"]: (g["lr_scale"], g["weight_decay"]) for g in optimizer.param_groups}
    assert found == {
        "tempme": (1.0, 0.2),
        "tempme_no_decay": (1.0, 0.0),
        "stop": (2.0, 0.2),
        "stop_no_decay": (3.0, 0.5),
    }
    assert optim.set_rates(optimizer, 0.5)["stop"] == 1.0


def test_a_group_that_the_model_does_not_have() -> None:
    optim.require_groups(weights(), group_of, Optim(groups={"stop*": Group(), "tempme": Group()}))
    with pytest.raises(ConfigError, match=r"no parameter group 'clip\*'; the model has: tempme, tempme_no_decay, stop"):
        optim.require_groups(weights(), group_of, Optim(groups={"clip*": Group()}))
    optim.require_groups(weights(), group_of, Optim(groups={"clip*": Group()}), usual={"clip*"})
