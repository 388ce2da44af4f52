"""Whether a run trains with DeepSpeed, and DeepSpeed itself. The only file that imports it."""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING

import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

from sensorium.engine.settings import DeepSpeed
from sensorium.errors import ConfigError

if TYPE_CHECKING:
    from types import ModuleType

_SHARED_MEMORY = "deepspeed_shm_comm"


def require(settings: DeepSpeed, optimizer: str, accumulation: str) -> None:
    """Raise ConfigError when the run would train with DeepSpeed and cannot."""
    if not settings.used:
        return
    if optimizer == "adamw8bit":
        raise ConfigError("optim.name adamw8bit does not go with DeepSpeed; use adamw, or deepspeed.enabled=false")
    if settings.zero_stage == 3 and accumulation == "inside-task":
        # Its weights are let go after the chunk that used them, and are then missing where chunks are added up.
        raise ConfigError(
            "deepspeed.zero_stage 3 does not go with this family, whose loss looks at all rows of a step at once; "
            "2 divides all but the weights"
        )


def load(cpu: bool) -> ModuleType:
    """DeepSpeed, so that it builds nothing and says little. Raises ConfigError when it is not installed."""
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # also on a machine with a GPU
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import deepspeed as module
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "deepspeed":
                raise ConfigError(f"deepspeed: cannot be used without {error.name}: pip install {error.name}") from None
            advice = "pip install 'sensorium[deepspeed]', or set deepspeed.enabled=false"
            raise ConfigError(f"deepspeed.enabled: DeepSpeed is not installed: {advice}") from None
        # Compiled for a minute when first used on a CPU, for inference alone.
        deepspeed: ModuleType = module
        deepspeed.ops.__compatible_ops__[_SHARED_MEMORY] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It calls torch by names that newer versions of torch replace.
    warnings.filterwarnings("ignore", r".*torch\.distributed\.\w+", FutureWarning, r"torch\.distributed\.c10d_logger")
    return deepspeed


def open_group(cpu: bool) -> None:
    """What a launcher would have done for a process that is alone; DeepSpeed would look for MPI."""
    os.environ["LOCAL_RANK"] = "0"
    store = HashStore()
    torch.distributed.init_process_group("gloo" if cpu else "nccl", store=store, rank=0, world_size=1)


def close_group(deepspeed: ModuleType) -> None:
    """Let DeepSpeed begin anew when it is used again in this process, with another process group."""
    if "RANK" not in os.environ:
        os.environ.pop("LOCAL_RANK", None)
    deepspeed.comm.destroy_process_group()
    deepspeed.comm.comm.cdb = None
