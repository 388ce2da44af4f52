"""Devices, precision and processes. The only file that imports accelerate; DeepSpeed is behind zero.py.

Accelerate is used for ``prepare(task, optimizer)`` and nothing else: no loader, no scheduler, no ``save_state``.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor, nn

from sensorium.engine import optim, ranks, signals, zero, zero_json, zero_start
from sensorium.engine.contract import Batch, Host, Output
from sensorium.engine.order import Share
from sensorium.engine.settings import DeepSpeed, Train
from sensorium.engine.tracking import progress_bar
from sensorium.errors import ConfigError, RunError, SensoriumError


class Backend:
    """One process of a run. ``advice``: what to do after a crash, for the end of a line. ``deepspeed``: its settings
    of the run, where it trains. ``whole_gradient``: of what trains, everything has a gradient in each step
    (contract.Family).

    Raises RunError when a launcher's other processes do not come, and at the end of its block in place of an error
    for which another process, or a loader worker, is the reason.
    """

    def __init__(
        self,
        settings: Train,
        advice: str = "",
        deepspeed: DeepSpeed | None = None,
        *,
        whole_gradient: bool = False,
    ) -> None:
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("train.device is cuda, but no GPU is visible; use cpu or auto")
        cpu = settings.device == "cpu" or not torch.cuda.is_available()
        self.precision, self.precision_note = usable_precision(settings.precision, cpu)
        used = deepspeed is not None and deepspeed.used
        self._deepspeed = (zero_start.load(cpu), deepspeed) if deepspeed is not None and used else None
        asked_world = int(os.environ.get("WORLD_SIZE", "1"))
        # The state is a process-wide singleton; a second run in one process may want another precision.
        AcceleratorState._reset_state(reset_partial_state=asked_world == 1)
        GradientState._reset_state()
        _allow_tf32(settings.tf32 and not cpu)
        self._clip = settings.grad_clip
        self._patience, self._advice = f"{settings.timeout_minutes:g} minutes", advice
        try:
            self._accelerator = Accelerator(
                cpu=cpu,
                mixed_precision="no" if self.precision == "fp32" else self.precision,
                # Ours alone: `accelerate launch --gradient_accumulation_steps` would divide every loss.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                kwargs_handlers=[
                    DistributedDataParallelKwargs(find_unused_parameters=not whole_gradient),
                    InitProcessGroupKwargs(timeout=timedelta(minutes=settings.timeout_minutes)),
                ],
            )
        except torch.distributed.DistError as error:
            raise RunError(
                f"the {asked_world} processes that the launcher asked for did not find each other within "
                f"{self._patience} ({str(error).partition(chr(10))[0]})"
            ) from error
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        if self.world != asked_world:
            raise RunError(f"the launcher asked for {asked_world} processes, but {self.world} found each other")
        self.notes = self._notes(deepspeed, settings)
        self._model: nn.Module | None = None
        self._optimizer: Any = None  # accelerate's, which knows the scaler
        self._plain: Any = None  # the one within; accelerate's looks for packages on disk in each step
        self._zero: zero.Zero | None = None
        self._roll = ranks.Roll(self.rank, self.world) if self.world > 1 else None
        if self._deepspeed is not None and not torch.distributed.is_initialized():
            zero_start.open_group(cpu)

    def _notes(self, asked: DeepSpeed | None, train: Train) -> list[str]:
        """What to say of settings without effect. Raises ConfigError for a batch that is not the run's."""
        if asked is None:
            return []
        if self._deepspeed is None:
            idle = [key for key in ("zero_stage", "cpu_offload") if getattr(asked, key) != getattr(DeepSpeed(), key)]
            names = " and ".join(f"deepspeed.{key}" for key in idle)
            return [f"DeepSpeed is not used: no effect of {names}"] if idle else []
        rest = asked.config if isinstance(asked.config, dict) else {}
        parts = train.micro_batches
        zero_json.batch_identity(rest, train.batch_size // (parts * self.world), parts, self.world)
        return [f"deepspeed.config: no effect of {key}, {why}" for key, why in zero_json.IDLE.items() if key in rest]

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def host(self, *, quiet: bool) -> Host:
        """What a family gets while it prepares its data; only the main process speaks."""
        silent = quiet or not self.is_main
        say = _silent if silent else print
        bar = partial(progress_bar, quiet=silent)
        return Host(str(self.device), self.rank, self.world, self.barrier, say, bar)

    def describe(self) -> str:
        divided = "" if self._deepspeed is None else f", DeepSpeed ZeRO {self._deepspeed[1].zero_stage}"
        precision = self.precision_note or self.precision
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return f"{name}, {self.world} process{'es' * (self.world > 1)}, {precision}{divided}"

    def prepare(
        self,
        task: nn.Module,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, nn.Parameter],
        state: Mapping[str, Tensor],
        share: Share,
    ) -> Callable[[Batch], Output]:
        """Wrap task and optimizer for this run's precision and processes; call the result for training steps.

        ``parameters``: what the optimizer trains, by name; ``state``: what it stored, see ``optim.export_state``.
        """
        self._plain = optimizer
        if self._deepspeed is not None:
            self._zero = zero.Zero(self._plan(share), task, optimizer, parameters, state)
            return self._zero
        self._accelerator.free_memory()
        task.to(self.device)
        optim.import_state(optimizer, parameters, state)
        self._model, self._optimizer = self._accelerator.prepare(task, optimizer)
        return self._model

    def _plan(self, share: Share) -> zero.Plan:
        assert self._deepspeed is not None
        module, settings = self._deepspeed
        stage, batch = settings.zero_stage, (share.rows, share.micro_batches)
        rest = settings.config if isinstance(settings.config, dict) else {}
        config = zero_json.for_deepspeed(rest, stage, settings.cpu_offload, self._clip, batch)
        return zero.Plan(module, config, self._clip, self.device, self.is_main, self.autocast, self.from_main)

    def release(self) -> None:
        """The task is to be a plain one: another stage begins, or training is over."""
        if self._zero is not None:
            self._zero.release()
            self._zero = None

    def whole(self, *, changed: bool = False) -> AbstractContextManager[None]:
        """The task may be looked at, run and, where ``changed``, written to by each process on its own."""
        return nullcontext() if self._zero is None else self._zero.whole(changed=changed)

    def weights(self, stored: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """``stored()``, tensors of the task by name, as they are to be saved; elsewhere than on the main process they
        may be left out."""
        if self._zero is not None:
            return self._zero.weights(stored())
        return stored() if self.is_main else {}

    def optimizer_state(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """As ``optim.export_state``; under DeepSpeed on the main process alone."""
        return optim.export_state(self._plain, parameters) if self._zero is None else self._zero.optimizer_state()

    def save_shards(self, folder: Callable[[], Path | None]) -> None:
        """DeepSpeed's own files, where this run trains with it and ``folder()``, asked on the main process, wants them:
        a folder that is not there yet, whose name becomes their tag. Raises DiskError."""
        if self._zero is not None and (target := self.from_main(folder)) is not None:
            self._zero.save(target)

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged between processes in the last micro-batch of a step only."""
        if self._zero is not None:
            return self._zero.micro_batch(last)
        if last:
            return nullcontext()
        together: AbstractContextManager[Any] = self._accelerator.no_sync(self._model)
        return together

    def autocast(self) -> AbstractContextManager[Any]:
        precision: AbstractContextManager[Any] = self._accelerator.autocast()
        return precision

    def backward(self, loss: Tensor) -> None:
        if self._zero is None:
            self._accelerator.backward(loss)
        else:
            scaler = self._accelerator.scaler
            self._zero.backward(loss if scaler is None else scaler.scale(loss))

    def finish_step(self, factor: float, clip: float | None) -> tuple[float, bool]:
        """Scale gradients, clip, step. Returns the gradient norm before clipping and whether the weights moved."""
        scaler = self._accelerator.scaler
        if self._zero is not None:
            return self._zero.finish_step(factor, scaler)
        if scaler is not None:
            scaler.unscale_(self._plain)
        gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        norm = float(torch.nn.utils.get_total_norm(gradients))
        finite = norm - norm == 0.0
        if finite and clip is not None and norm > clip:
            torch._foreach_mul_(gradients, clip / (norm + 1e-6))
        if scaler is None:
            if finite:
                self._plain.step()
        elif finite:
            self._optimizer.step()  # and looks after the scale
        else:
            # Not left to the scaler: it does not see a norm that overflows over finite gradients, and AdamW would make
            # itself a state in a step that it skips.
            scaler.update()
        self._plain.zero_grad()
        return norm, finite

    def loss_scale(self) -> float | None:
        """By what the loss is multiplied in fp16; None in other precisions."""
        scaler = self._accelerator.scaler
        return None if scaler is None else float(scaler.get_scale())

    def drop_step(self, loss: Tensor) -> None:
        """Forget the gradients of a step that ends here, as ``loss`` was not finite on one of the processes."""
        if self._zero is not None:
            return self._zero.drop_step(loss)
        if self.world > 1:  # DDP would take the next step's first backward pass for the one that it still waits for
            self.backward(loss)
        self._plain.zero_grad()

    def any(self, flag: bool) -> bool:
        """True on all processes when it is true on one."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)])) > 0)

    def anywhere(self, flags: Sequence[bool]) -> list[bool]:
        """Each flag true on all processes when it is true on one."""
        return list(flags) if self.world == 1 else (self.sum(torch.tensor(flags, dtype=torch.float64)) > 0).tolist()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, on the CPU, float64."""
        if self.world == 1:
            return values.double().cpu()
        total: Tensor = self._accelerator.reduce(values.to(self.device, torch.float64), reduction="sum")
        return total.cpu()

    def gather(self, values: list[Any]) -> list[Any]:
        """The lists of all processes, joined in the order of their ranks."""
        return values if self.world == 1 else list(gather_object(values))

    def from_main(self, compute: Callable[[], Any]) -> Any:
        """Run ``compute`` on the main process; every process gets its result."""
        box = [compute() if self.is_main else None]
        if self.world > 1:
            broadcast_object_list(box)
        return box[0]

    def agree(self, what: str, mine: Mapping[str, Any], kind: type[SensoriumError]) -> None:
        """Raise ``kind`` on all processes, naming ranks and values, when ``mine`` is not the same on all."""
        difference = None if self.world == 1 else ranks.disagreement(self.gather([dict(mine)]))
        if difference is not None:
            raise kind(f"the processes do not agree on the {what}: {difference}")

    def barrier(self) -> None:
        self._accelerator.wait_for_everyone()

    def write_state(self) -> dict[str, float]:
        """What must be stored besides weights and optimizer: the loss scaler."""
        scaler = self._accelerator.scaler
        return dict(scaler.state_dict()) if scaler is not None else {}

    def read_state(self, state: dict[str, float]) -> None:
        if self._accelerator.scaler is not None and state:
            self._accelerator.scaler.load_state_dict(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave the process group; say what stands behind an error that only follows from another's end."""
        if error is None:
            return self._close()
        with signals.held_back():
            found: SensoriumError | None = ranks.dead_worker(error, self._advice)
            if self._roll is not None:
                found = self._roll.leave(found or error, self._patience, self._advice) or found
            if found is not None or not isinstance(error, Exception) or isinstance(error, SensoriumError):
                _let_go(error)  # of anything else a debugger may want to look at the variables
            self._close()
        if found is not None:
            raise found from error

    def _close(self) -> None:
        if self._roll is None and self._deepspeed is None:
            return
        if self._roll is not None:
            self._roll.close()
        # An interpreter that ends with DDP alive can abort in its last moment.
        self._model = self._optimizer = self._plain = self._zero = None
        self._accelerator.free_memory()
        gc.collect()
        if self._deepspeed is not None:
            zero_start.close_group(self._deepspeed[0])
        else:
            torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)

    def peak_memory(self) -> int | None:
        """Largest number of bytes allocated on the GPU so far; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of a traceback hold: the model with its process group, and loader workers, which end at once
    when they are let go one by one, but are waited for when a garbage collector finds them."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _silent(_: str) -> None:
    """Only the main process speaks."""


def _allow_tf32(wanted: bool) -> None:
    if wanted:
        torch.set_float32_matmul_precision("high")


def usable_precision(asked: str, cpu: bool) -> tuple[str, str | None]:
    """The precision that this device really has, and the line that says so when it is not the one asked for."""
    if cpu and asked == "fp16":
        return "fp32", "fp32 (fp16 asked, no GPU)"
    if not cpu and asked == "bf16" and not torch.cuda.is_bf16_supported():
        return "fp32", "fp32 (bf16 asked, this GPU lacks it)"
    return asked, None
