"""A DeepSpeed JSON as part of a run's configuration: what it says twice, what is left for DeepSpeed, what has no place.

The run's own settings are the only place for whatever the engine does itself: accumulation, clipping, precision,
optimizer, schedule, stage. Such keys of the JSON become a layer of the configuration, and are then gone from it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sensorium.errors import ConfigError

# Handed on to DeepSpeed as they are.
_HANDED_ON = (
    "comms_logger",
    "dump_state",
    "flops_profiler",
    "gradient_predivide_factor",
    "memory_breakdown",
    "prescale_gradients",
    "steps_per_print",
    "wall_clock_breakdown",
)
# Of `zero_optimization`: how, and never what, is computed.
_ZERO = (
    "allgather_bucket_size",
    "allgather_partitions",
    "contiguous_gradients",
    "ignore_unused_parameters",
    "overlap_comm",
    "reduce_bucket_size",
    "reduce_scatter",
    "round_robin_gradients",
    "stage3_gather_16bit_weights_on_model_save",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size",
    "sub_group_size",
)
# Checked against the batch of the run when it starts, see `batch_identity`.
_BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu")
# Found in many files, and without effect here: by key, why.
IDLE = {
    "activation_checkpointing": "it acts on Megatron's models alone",
    "bf16": "weights stay fp32, the forward pass computes in train.precision",
    "fp16": "the engine's own loss scaler is used",
    "zero_allow_untested_optimizer": "it is always on",
    "zero_force_ds_cpu_optimizer": "the engine's own optimizer is used",
}
_PRECISIONS = ("bf16", "fp16")
_SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}


@dataclass(frozen=True)
class Said:
    """A key of the JSON that is a setting of the run: its dotted name there and here, and the value here."""

    theirs: str
    ours: str
    value: Any


def translate(content: Mapping[str, Any]) -> tuple[list[Said], dict[str, Any]]:
    """What of a DeepSpeed JSON the run's own settings say, and the rest, for ``for_deepspeed``.

    ``"auto"`` counts as not given. Raises ConfigError listing every key and value that has no place.
    """
    given = _without_auto(content)
    problems: list[str] = []
    said = [*_numbers(given), *_precision(given, problems), *_zero(given, problems)]
    said += _optimizer(given.get("optimizer"), problems)
    said += _scheduler(given.get("scheduler"), problems)
    known = (*_HANDED_ON, *_BATCH, *IDLE, *_NUMBERS, "optimizer", "scheduler", "zero_optimization")
    problems += [_unknown(key, known, "") for key in given if key not in known]
    if problems:
        raise ConfigError("\n".join(["deepspeed.config:", *(f"  {problem}" for problem in problems)]))
    rest = {key: value for key, value in given.items() if key in (*_HANDED_ON, *_BATCH, *IDLE)}
    for name in _PRECISIONS:
        rest[name] = {key: value for key, value in rest.get(name, {}).items() if key != "enabled"}
    rest = {key: value for key, value in rest.items() if value != {}}
    zero = {key: value for key, value in given.get("zero_optimization", {}).items() if key in _ZERO}
    return said, rest | ({"zero_optimization": zero} if zero else {})


def require_same(said: Sequence[Said], given: Mapping[str, Any]) -> None:
    """Raise ConfigError naming both values where the user's own settings, by dotted name, say something else."""
    lines = [
        f"  {one.theirs} means {one.ours} {one.value!r}, but {one.ours} is {given[one.ours]!r}; delete one of them"
        for one in said
        if one.ours in given and given[one.ours] != one.value
    ]
    if lines:
        raise ConfigError("\n".join(["deepspeed.config contradicts the run's own settings:", *lines]))


def as_layer(said: Sequence[Said]) -> dict[str, Any]:
    """The same as a layer of a configuration."""
    layer: dict[str, Any] = {}
    for one in said:
        section, _, key = one.ours.partition(".")
        layer.setdefault(section, {})[key] = one.value
    return layer


def for_deepspeed(
    rest: Mapping[str, Any], stage: int, cpu_offload: bool, clip: float | None, batch: tuple[int, int]
) -> dict[str, Any]:
    """The configuration that DeepSpeed gets. ``batch``: rows of a micro-batch on a process, micro-batches."""
    zero = {**rest.get("zero_optimization", {}), "stage": stage}
    if cpu_offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "steps_per_print": 2**31,
        **{key: value for key, value in rest.items() if key in _HANDED_ON},
        "train_micro_batch_size_per_gpu": batch[0],
        "gradient_accumulation_steps": batch[1],
        "gradient_clipping": clip or 0.0 if stage else 0.0,  # in stage 0 it is left to us
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def batch_identity(rest: Mapping[str, Any], rows: int, parts: int, world: int) -> None:
    """Raise ConfigError when the JSON names another batch than the run has: ``rows`` x ``parts`` x ``world``."""
    whole = rows * parts * world
    product = f"{rows} x {parts} x {world} = {whole} (rows of a micro-batch, micro-batches, processes)"
    found = rest.get("train_batch_size", whole)
    if found != whole:
        raise ConfigError(f"deepspeed.config: train_batch_size {found} is not {product}: delete the key or set {whole}")
    found = rest.get("train_micro_batch_size_per_gpu", rows)
    if found != rows:
        raise ConfigError(
            f"deepspeed.config: train_micro_batch_size_per_gpu {found} is not the first of {product}: delete the key, "
            f"or set train.batch_size={found * parts * world}"
        )


def _without_auto(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else value
        for key, value in content.items()
        if value != "auto"
    }


def _unknown(key: str, allowed: Sequence[str], where: str) -> str:
    close = difflib.get_close_matches(key, allowed, n=1)
    advice = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(sorted(allowed))}"
    return f"{where}{key}: has no place here; {advice}"


def _same(value: Any) -> Any:
    return value


_NUMBERS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "gradient_accumulation_steps": ("train.micro_batches", _same),
    "gradient_clipping": ("train.grad_clip", lambda value: value or None),
}


def _numbers(given: Mapping[str, Any]) -> Iterator[Said]:
    for key, (ours, convert) in _NUMBERS.items():
        if key in given:
            yield Said(key, ours, convert(given[key]))


def _section(given: Mapping[str, Any], key: str, problems: list[str]) -> Mapping[str, Any]:
    found = given.get(key, {})
    if isinstance(found, Mapping):
        return found
    problems.append(f"{key}: found {found!r}; a section is needed")
    return {}


def _precision(given: Mapping[str, Any], problems: list[str]) -> list[Said]:
    wanted = [name for name in _PRECISIONS if _section(given, name, problems).get("enabled") is True]
    if len(wanted) == 2:
        problems.append("bf16 and fp16 are both enabled; choose one")
    return [Said(f"{name}.enabled", "train.precision", name) for name in wanted[:1]]


def _zero(given: Mapping[str, Any], problems: list[str]) -> Iterator[Said]:
    zero = _section(given, "zero_optimization", problems)
    prefix = "zero_optimization."
    problems += [
        _unknown(key, (*_ZERO, "stage", "offload_optimizer"), prefix)
        for key in zero
        if key not in (*_ZERO, "stage", "offload_optimizer", "cpu_offload")
    ]
    if "stage" in zero:
        yield Said(f"{prefix}stage", "deepspeed.zero_stage", zero["stage"])
    if "cpu_offload" in zero:  # as it was called before 0.5
        yield Said(f"{prefix}cpu_offload", "deepspeed.cpu_offload", zero["cpu_offload"])
    if "offload_optimizer" in zero:
        offload = _section(zero, "offload_optimizer", problems)
        device = offload.get("device", "none")
        if device not in ("cpu", "none"):
            problems.append(f"{prefix}offload_optimizer.device: found {device!r}; allowed: cpu, none")
        problems += [
            _unknown(key, ("device", "pin_memory"), f"{prefix}offload_optimizer.")
            for key in offload
            if key not in ("device", "pin_memory")
        ]
        yield Said(f"{prefix}offload_optimizer.device", "deepspeed.cpu_offload", device == "cpu")


def _optimizer(block: Any, problems: list[str]) -> Iterator[Said]:
    """AdamW; DeepSpeed's `Adam` is one, too, unless told otherwise."""
    if block is None:
        return
    kind = block.get("type") if isinstance(block, Mapping) else block
    parameters = block.get("params", {}) if isinstance(block, Mapping) else {}
    if kind not in ("AdamW", "Adam") or parameters.get("adam_w_mode") is False:
        problems.append(f"optimizer: found {kind!r}; AdamW can be translated, others are chosen by optim.name")
        return
    ours = ("lr", "betas", "eps", "weight_decay")
    idle = ("torch_adam", "adam_w_mode", "bias_correction")
    yield Said("optimizer.type", "optim.name", "adamw")
    for key, value in parameters.items():
        if key in ours:
            yield Said(f"optimizer.params.{key}", f"optim.{key}", value)
        elif key not in idle:
            problems.append(_unknown(key, (*ours, *idle), "optimizer.params."))


def _scheduler(block: Any, problems: list[str]) -> Iterator[Said]:
    if block is None:
        return
    kind = block.get("type") if isinstance(block, Mapping) else block
    if kind not in _SCHEDULES:
        problems.append(f"scheduler: found {kind!r}; can be translated: {', '.join(_SCHEDULES)}; or use schedule.name")
        return
    yield Said("scheduler.type", "schedule.name", _SCHEDULES[kind])
    names = {"warmup_num_steps": "schedule.warmup_steps", "warmup_max_lr": "optim.lr"}
    if kind == "WarmupCosineLR":
        names["cos_min_ratio"] = "schedule.final_fraction"
    idle = ("total_num_steps", "warmup_type", "last_batch_iteration")  # a warm-up is linear; it ends where the run does
    for key, value in block.get("params", {}).items():
        if key in names:
            yield Said(f"scheduler.params.{key}", names[key], value)
        elif key in ("warmup_min_lr", "warmup_min_ratio"):
            if value:
                problems.append(f"scheduler.params.{key}: found {value!r}; a warm-up begins at 0")
        elif key not in idle:
            problems.append(_unknown(key, (*names, *idle), "scheduler.params."))
