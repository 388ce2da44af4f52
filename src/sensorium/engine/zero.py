"""DeepSpeed's ZeRO for one stage of a run: what the processes divide, and how the whole is put together again.

Weights stay fp32, whatever the precision of the forward pass, so that nothing but who holds what differs from a plain
run: a checkpoint is that of a plain run, by parameter name, and either continues from the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sensorium.engine import optim
from sensorium.engine.contract import Batch, Output
from sensorium.errors import CheckpointError
from sensorium.files import disk, told

if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True)
class Plan:
    """``config``: what DeepSpeed gets. ``clip``: the largest norm of a gradient. ``autocast``: the precision of the
    forward pass. ``from_main``: what the main process computes, on every process."""

    deepspeed: ModuleType
    config: Mapping[str, Any]
    clip: float | None
    device: torch.device
    is_main: bool
    autocast: Callable[[], AbstractContextManager[Any]]
    from_main: Callable[[Callable[[], Any]], Any]

    @property
    def stage(self) -> int:
        stage: int = self.config["zero_optimization"]["stage"]
        return stage


class Zero:
    """A task under DeepSpeed, from ``__init__`` to ``release``.

    ``parameters``: what ``optimizer`` trains, by name. ``state``: of the optimizer, as ``optim.export_state`` gives it,
    on the main process.
    """

    def __init__(
        self,
        plan: Plan,
        task: nn.Module,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, nn.Parameter],
        state: Mapping[str, Tensor],
    ) -> None:
        self._plan, self._task, self._parameters = plan, task, parameters
        scalars, shapes = plan.from_main(lambda: _about(state))
        _split_by_step(optimizer, parameters, scalars)
        self._group_of = {p: number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self._base = optimizer
        self._before = _attributes(task)
        self._begins = True  # the next micro-batch is the first of its step
        self._cover()
        # DeepSpeed cannot send what has no dimension.
        scalar: list[Any] = [parameter for parameter in task.parameters() if not parameter.ndim]
        for parameter in scalar:
            parameter.ds_optim_param = True  # not to be sent: the processes begin alike
        if plan.stage == 3:
            self._divide(scalar)
        self.engine, self._optimizer, _, _ = plan.deepspeed.initialize(
            model=task, optimizer=optimizer, config=dict(plan.config), dist_init_required=False
        )
        if self.engine.zero_optimization_stage() != plan.stage:
            raise RuntimeError(f"DeepSpeed runs stage {self.engine.zero_optimization_stage()}, not {plan.stage}")
        self._import(state, scalars, shapes)

    def _divide(self, scalar: Sequence[Any]) -> None:
        """Move and divide one parameter after the other."""
        for parameter in scalar:
            parameter.data = parameter.data.reshape(1)
        self._plan.deepspeed.zero.Init(module=self._task, config_dict_or_path=dict(self._plan.config))
        for parameter in scalar:
            parameter.ds_shape = torch.Size()
        for module in self._task.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(self._plan.device)

    # Training

    def __call__(self, batch: Batch) -> Output:
        return Output(*self.engine(batch))

    def _cover(self) -> None:
        """Let the task's forward pass have the run's precision, which DeepSpeed would switch off, and give a tuple, in
        which DeepSpeed finds the loss."""
        forward = type(self._task).forward

        def covered(batch: Batch) -> tuple[Tensor, dict[str, Tensor], float]:
            with self._plan.autocast():
                output: Output = forward(self._task, batch)
            return output.loss, dict(output.logs), output.weight

        self._task.__dict__["forward"] = covered

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Gradients are complete after the last micro-batch. As under DDP the buffers are those of the main process."""
        if self._begins:
            for buffer in self._task.buffers():
                self._plan.deepspeed.comm.broadcast(buffer, 0)
        self._begins = last
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def drop_step(self, loss: Tensor) -> None:
        """Forget the gradients of a step: with one more that is none, DeepSpeed clears away all of them itself."""
        self._begins = True
        self.engine.set_gradient_accumulation_boundary(True)
        if self._plan.stage == 0:
            self._base.zero_grad()
            return
        self.backward(loss * float("nan"))
        self.engine.step()

    def finish_step(self, factor: float, scaler: torch.amp.GradScaler | None) -> tuple[float, bool]:
        """Scale gradients, clip, step, as ``Backend.finish_step``."""
        factor = factor / (1.0 if scaler is None else scaler.get_scale())
        norm, moved = self._step_alone(factor) if self._plan.stage == 0 else self._step_together(factor)
        if scaler is not None:
            _report(scaler, moved, self._plan.device)
        return norm, moved

    def _step_alone(self, factor: float) -> tuple[float, bool]:
        """Stage 0: each process holds all gradients, and clips them as a plain run does."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        torch._foreach_mul_(gradients, factor)
        norm = float(torch.nn.utils.get_total_norm(gradients))
        moved, clip = norm - norm == 0.0, self._plan.clip
        if moved and clip is not None and norm > clip:
            torch._foreach_mul_(gradients, clip / (norm + 1e-6))
        if moved:
            self.engine.step()
        self._base.zero_grad()
        return norm, moved

    def _step_together(self, factor: float) -> tuple[float, bool]:
        """What DeepSpeed divides gradients by, before it looks at their norm and clips, is its loss scale."""
        self._optimizer.loss_scale = 1.0 / factor
        self.engine.step()
        self._optimizer.loss_scale = 1.0
        return float(self.engine.get_global_grad_norm()), bool(self.engine.was_step_applied())

    # The whole

    @contextmanager
    def whole(self, *, changed: bool = False) -> Iterator[None]:
        """The task as it is without DeepSpeed, on every process; stage 3 puts its weights together for that long.

        Processes may then do different things with it. ``changed``: the weights are, by all processes alike.
        """
        del self._task.__dict__["forward"]
        if self._plan.stage == 3:
            with self._gathered(changed):
                yield
        else:
            yield
        self._cover()
        if changed and self._plan.stage:
            self._optimizer.refresh_fp32_params()

    @contextmanager
    def _gathered(self, changed: bool) -> Iterator[None]:
        """Without the hooks, which would divide the weights again behind the first layer."""
        offload = self._optimizer.parameter_offload
        parameters: list[Any] = list(self._task.parameters())
        for parameter in parameters:
            parameter.ds_active_sub_modules.clear()
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        gather = self._plan.deepspeed.zero.GatheredParameters
        with gather(parameters, modifier_rank=0 if changed else None):
            yield
            for parameter in parameters if changed else ():
                parameter.data = parameter.data.reshape(parameter.shape or 1)
        offload._register_deepspeed_module(self._task)

    def weights(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``stored``, tensors of the task by name, whole and on the CPU of the main process; a parameter at a time."""
        named = dict(self._task.named_parameters(remove_duplicate=False))
        found: dict[str, Tensor] = {}
        for name, tensor in stored.items():
            parameter = named.get(name)
            if self._plan.stage == 3 and parameter is not None:
                with self._plan.deepspeed.zero.GatheredParameters([parameter]):
                    if self._plan.is_main:
                        found[name] = parameter.detach().to("cpu", copy=True)
            elif self._plan.is_main:
                found[name] = tensor.detach().to("cpu", copy=True)
        return found

    def optimizer_state(self) -> dict[str, Tensor]:
        """As ``optim.export_state``, on the main process; put together one tensor at a time."""
        if self._plan.stage == 0:
            return optim.export_state(self._base, self._parameters) if self._plan.is_main else {}
        self._link()
        get = self._plan.deepspeed.utils.safe_get_full_optimizer_state
        found: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            for kind, value in self._base.state.get(self._flats(parameter)[0], {}).items():
                full = get(parameter, kind) if value.ndim else value
                if self._plan.is_main:
                    found[f"{name}/{kind}"] = full.detach().to("cpu", copy=True)
        return found

    def save(self, folder: Path) -> None:
        """DeepSpeed's own files of this moment, into ``folder``, whose name is their tag. Raises DiskError."""
        saved = {"save_latest": False, "exclude_frozen_parameters": True}
        with told(folder):
            disk.by_library(folder, lambda path: self.engine.save_checkpoint(str(path.parent), tag=path.name, **saved))

    def release(self) -> None:
        """Leave the task as a plain one, whole and on the CPU."""
        for parameter in self._task.parameters():
            with self._plan.deepspeed.zero.GatheredParameters([parameter]):
                whole = parameter.detach().to("cpu", copy=True)
            self._before.weights[parameter] = whole
        self.engine.destroy()
        self.engine.module_forward_pre_hook.remove()
        self.engine.module_forward_post_hook.remove()
        del self._task.__dict__["forward"]
        self._before.put_back(self._task)

    # State of the optimizer

    def _flats(self, parameter: nn.Parameter) -> list[Tensor]:
        """This process's parts of the parameter's group, as the optimizer knows them."""
        group = self._group_of[parameter]
        if self._plan.stage < 3:
            return [self._optimizer.single_partition_of_fp32_groups[group]]
        flats = self._optimizer.fp32_partitioned_groups_flat
        return [flat for number, flat in enumerate(flats) if self._optimizer.sub_group_to_group_id[number] == group]

    def _import(
        self, state: Mapping[str, Tensor], scalars: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
    ) -> None:
        """Give the optimizer its stored state: each process takes its parts of what the main process sends."""
        mine = {name for name in shapes if name.rpartition("/")[0] in self._parameters}
        if self._plan.stage == 0:
            stored = {key: self._sent(state, key, shapes[key]) for key in shapes if key in mine} | dict(scalars)
            return optim.import_state(self._base, self._parameters, stored)
        for key in mine:
            name, _, kind = key.rpartition("/")
            own = {k.rpartition("/")[2]: value for k, value in scalars.items() if k.rpartition("/")[0] == name}
            for flat in self._flats(self._parameters[name]):
                places = self._base.state.setdefault(flat, {})
                places.setdefault(kind, torch.zeros_like(flat))
                places.update({k: value.to(flat.device, copy=True) for k, value in own.items()})
        self._link()
        for key, shape in shapes.items():
            name, _, kind = key.rpartition("/")
            if key in mine:
                if shape != self._shape(self._parameters[name]):
                    raise CheckpointError(f"optimizer state {key}: shape {tuple(shape)} is not that of the weight")
                self._put(self._parameters[name], kind, self._sent(state, key, shape))
        return None

    def _put(self, parameter: Any, kind: str, whole: Tensor) -> None:
        """Keep this process's part. DeepSpeed's own way in stage 3 wants sizes that the processes divide evenly."""
        utils = self._plan.deepspeed.utils
        if self._plan.stage < 3:
            utils.safe_set_full_optimizer_state(parameter, whole, kind)
            return
        size, world = parameter.ds_tensor.numel(), self._plan.deepspeed.comm.get_world_size()
        padded = nn.functional.pad(whole.flatten(), (0, size * world - whole.numel()))
        part = padded[size * self._plan.deepspeed.comm.get_rank() :][:size]
        utils.safe_set_local_optimizer_state(parameter, part, kind)

    def _link(self) -> None:
        """In stages 1 and 2 a parameter's state is a view of its group's, made once, when other groups have none."""
        if self._plan.stage < 3:
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _shape(self, parameter: nn.Parameter) -> torch.Size:
        shape: torch.Size = parameter.ds_shape if self._plan.stage == 3 else parameter.shape  # type: ignore[attr-defined]
        return shape

    def _sent(self, state: Mapping[str, Tensor], key: str, shape: torch.Size) -> Tensor:
        if self._plan.is_main:
            tensor = state[key].to(self._plan.device, torch.float32).contiguous()
        else:
            tensor = torch.empty(shape, device=self._plan.device)
        self._plan.deepspeed.comm.broadcast(tensor, 0)
        return tensor


def _about(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, torch.Size]]:
    """The scalars of an optimizer's state, and the shapes of its tensors."""
    scalars = {key: value for key, value in state.items() if not value.ndim}
    return scalars, {key: value.shape for key, value in state.items() if value.ndim}


def _split_by_step(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], scalars: Mapping[str, Tensor]
) -> None:
    """Make groups of parameters that were stepped as often: what is divided together has one count of its steps."""
    steps = {p: float(scalars.get(f"{name}/step", torch.zeros(()))) for name, p in parameters.items()}
    groups = []
    for group in optimizer.param_groups:
        counts = dict.fromkeys(steps[p] for p in group["params"])
        groups += [{**group, "params": [p for p in group["params"] if steps[p] == count]} for count in counts]
    optimizer.param_groups[:] = groups


def _report(scaler: torch.amp.GradScaler, moved: bool, device: torch.device) -> None:
    """Tell the loss scaler of a step that it has not seen: whether there was an overflow."""
    probe = nn.Parameter(torch.zeros((), device=device))
    probe.grad = torch.full((), 0.0 if moved else float("inf"), device=device)
    scaler.unscale_(torch.optim.SGD([probe]))
    scaler.update()


@dataclass(frozen=True)
class _Before:
    """Which attributes modules and parameters had before DeepSpeed hung its own on them."""

    modules: dict[nn.Module, set[str]]
    parameters: dict[nn.Parameter, set[str]]
    weights: dict[nn.Parameter, Tensor]

    def put_back(self, task: nn.Module) -> None:
        for module, names in self.modules.items():
            module.__dict__["_parameters"] = dict(module._parameters)
            for name in vars(module).keys() - names:
                del module.__dict__[name]
        for parameter, names in self.parameters.items():
            for name in vars(parameter).keys() - names:
                delattr(parameter, name)
            parameter.data, parameter.grad = self.weights[parameter], None
        task.to("cpu")


def _attributes(task: nn.Module) -> _Before:
    modules = {module: set(vars(module)) for module in task.modules()}
    return _Before(modules, {parameter: set(vars(parameter)) for parameter in task.parameters()}, {})
