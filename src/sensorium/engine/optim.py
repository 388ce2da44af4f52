"""Optimizers over named parameter groups; their state is kept by parameter name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.engine.settings import Group, Optim
from sensorium.errors import CheckpointError, ConfigError


def build(
    parameters: Mapping[str, nn.Parameter],
    group_of: Callable[[str, nn.Parameter], str],
    settings: Optim,
    lr_scales: Mapping[str, float],
) -> torch.optim.Optimizer:
    """An optimizer whose groups carry ``name``, ``lr_scale`` and their weight decay.

    ``lr_scales``: those of a stage, by pattern; parameters of one name and one scale make a group. Groups whose name
    ends with ``no_decay`` are not decayed, unless the settings say otherwise.
    """
    members: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        scale = next((scale for pattern, scale in lr_scales.items() if fnmatchcase(name, pattern)), 1.0)
        members.setdefault((group_of(name, parameter), scale), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for (name, scale), tensors in members.items():
        own = next((group for pattern, group in settings.groups.items() if fnmatchcase(name, pattern)), Group())
        decay = 0.0 if name.endswith("no_decay") else settings.weight_decay
        decay = own.weight_decay if own.weight_decay is not None else decay
        groups.append({"params": tensors, "name": name, "lr_scale": own.lr_scale * scale, "weight_decay": decay})
    common: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    if settings.name == "adamw8bit":
        return _adamw8bit()(groups, **common)
    if settings.name == "bertadam":
        return BertAdam(groups, **common)
    return torch.optim.AdamW(groups, **common, fused=True)


class BertAdam(torch.optim.Optimizer):
    """Adam without bias correction and with decoupled weight decay, as BERT was trained (Devlin et al. 2018, arXiv
    1810.04805; optimization.py of google-research/bert): m and v begin at 0, and w -= lr * (m / (sqrt(v) + eps) +
    decay * w)."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient stay."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight] = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            gradients = [weight.grad for weight in weights]
            first, second = ([self.state[weight][name] for weight in weights] for name in ("exp_avg", "exp_avg_sq"))
            torch._foreach_lerp_(first, gradients, 1 - group["betas"][0])
            torch._foreach_mul_(second, group["betas"][1])
            torch._foreach_addcmul_(second, gradients, gradients, 1 - group["betas"][1])
            scale = torch._foreach_sqrt(second)
            torch._foreach_add_(scale, group["eps"])
            change = torch._foreach_div(first, scale)
            torch._foreach_add_(change, weights, alpha=group["weight_decay"])
            torch._foreach_add_(weights, change, alpha=-group["lr"])


def require_groups(
    parameters: Mapping[str, nn.Parameter],
    group_of: Callable[[str, nn.Parameter], str],
    settings: Optim,
    usual: Collection[str] = (),
) -> None:
    """Raise ConfigError for settings of a parameter group that the model does not have; but for ``usual`` ones, of the
    preset, which is for more than one model."""
    names = dict.fromkeys(group_of(name, parameter) for name, parameter in parameters.items())
    for pattern in settings.groups:
        if pattern not in usual and not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"optim.groups: no parameter group {pattern!r}; the model has: {', '.join(names)}")


def require(settings: Optim) -> None:
    """Raise ConfigError when the optimizer cannot be had on this machine."""
    if settings.name == "adamw8bit":
        _adamw8bit()


def _adamw8bit() -> type[torch.optim.Optimizer]:
    if not torch.cuda.is_available():
        raise ConfigError("optim.name adamw8bit needs a GPU (on a CPU it is several times slower); use adamw")
    try:
        chosen: type[torch.optim.Optimizer] = importlib.import_module("bitsandbytes.optim").AdamW8bit
    except ImportError:
        raise ConfigError("optim.name adamw8bit needs bitsandbytes: pip install 'sensorium[bnb]'") from None
    return chosen


def state_bytes(parameters: Mapping[str, nn.Parameter], settings: Optim) -> int:
    """How large the state gets when all ``parameters`` are trained: two moments each."""
    each = 1 if settings.name == "adamw8bit" else 0  # 0: as the parameter
    return sum(2 * parameter.numel() * (each or parameter.element_size()) for parameter in parameters.values())


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> dict[str, float]:
    """Set every group's learning rate from the step's rate; returns the largest by group name."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
        rates[group["name"]] = max(group["lr"], rates.get(group["name"], 0.0))
    return rates


def export_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """``{"<parameter name>/<kind>": tensor}`` on the CPU; parameters without state (never stepped) are absent."""
    state: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            state[f"{name}/{kind}"] = torch.as_tensor(value).detach().cpu()
    return state


def import_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    """Give each parameter its stored state; names in ``state`` that are not trained (any more) are left out."""
    for key, value in state.items():
        name, _, kind = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None:
            continue
        if value.ndim and value.shape != parameter.shape and value.dtype == torch.float32:
            raise CheckpointError(f"optimizer state {key}: shape {tuple(value.shape)}, weight {tuple(parameter.shape)}")
        device = parameter.device if value.ndim or value.dtype == torch.float32 else torch.device("cpu")
        optimizer.state.setdefault(parameter, {})[kind] = value.to(device, copy=True)
