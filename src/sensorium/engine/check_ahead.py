"""What ``sensorium check`` says before it trains: checkpoints to come, memory, and what the family foresees."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import nn

from sensorium.engine import checkpoint, optim, session
from sensorium.engine.contract import Ahead, Demand, Family, Finding, Sources
from sensorium.engine.lengths import LengthSource
from sensorium.engine.order import Clock, Share, clock_of, order_of, require_lengths
from sensorium.engine.schedule import in_steps, learning_rate
from sensorium.engine.seeds import reseed
from sensorium.engine.settings import RunConfig
from sensorium.engine.shortage import divisions, parts_text, rows_text, share_of
from sensorium.engine.stages import learnable, select, spans
from sensorium.engine.tables import size_text

TIGHT = 0.9  # of a GPU: above it, fragments and the libraries' own buffers may be too much
STEPS = 50  # whose padding is counted


def foreseen(
    family: Family, config: RunConfig, sources: Sources, device: torch.device, world: int
) -> Iterator[Finding]:
    """Each as soon as it is known. Raises ConfigError and DataError where the run could not be begun."""
    clock = clock_of(sources.train, config)
    require_lengths(sources, config)
    yield Finding("checkpoints", _checkpoints(family, config, clock))
    share = share_of(config, world)
    yield from padding(sources, config, share, min(STEPS, clock.total))
    if family.demand is not None:
        yield memory(family, config, sources, (device, _room(device)), world)
    if family.outlook is not None:
        task = _new_task(family, config, sources)
        yield from family.outlook(Ahead(config, sources, task, reach(family, config, task, clock), share.rows))


def padding(sources: Sources, config: RunConfig, share: Share, steps: int) -> Iterator[Finding]:
    """The part of the tokens of the first ``steps`` that is padding to the longest of a micro-batch, sorted and not;
    nothing where samples have no length."""
    source, window = sources.train, config.loader.sort_window
    if not isinstance(source, LengthSource):
        return
    found = {}
    for tried in (0, window or STEPS):
        order = order_of(source, config.seed, config.train.batch_size, tried)
        room = held = 0
        for place in product(range(steps), range(share.micro_batches), range(share.world)):
            lengths = [source.length(order.sample(position)) for position in share.positions(*place)]
            room, held = room + len(lengths) * max(lengths), held + sum(lengths)
        found[tried] = 1 - held / max(1, room)
    plain, ordered = (f"{part:.0%}{' (as it is set)' * (tried == window)}" for tried, part in found.items())
    yield Finding(
        "padding", f"{plain} of the tokens in {steps} steps; {ordered} with loader.sort_window={window or STEPS}"
    )


def _checkpoints(family: Family, config: RunConfig, clock: Clock) -> str:
    """Names of all that will be saved whatever validation says."""
    plan, settings = spans(family.stages(config), clock.total), config.checkpoint
    ends = {span.end for span in plan}
    dues = ((settings.every_steps, settings.every_epochs), (settings.milestone_steps, settings.milestone_epochs))
    steps = [n for n in range(1, clock.total + 1) if n in ends or any(clock.due(n, *due) for due in dues)]
    names = [checkpoint.name_of(step) for step in steps]
    shown = names if len(names) < 5 else [names[0], names[1], "…", names[-1]]
    validated = config.evaluate.every_steps is not None or config.evaluate.every_epochs is not None
    better = ", and where validation is better than before" * validated
    return f"{len(names)} of {clock.total:,} steps: {', '.join(shown)}{better}; kept: newest {settings.keep}, the best"


def _new_task(family: Family, config: RunConfig, sources: Sources) -> nn.Module:
    """The task that the run would begin with, on the CPU."""
    facts = family.facts(config, sources)
    reseed(config.seed, "weights")
    task = family.task(config, facts)
    session.begin(family, task, config, session.warm_start(config), lambda _: None)
    return task


def reach(family: Family, config: RunConfig, task: nn.Module, clock: Clock) -> dict[str, float]:
    """Sum of the learning rates of all steps, by name of what trains in any of them."""
    parameters = learnable(task)
    schedule = in_steps(config.schedule, 1 / clock.epoch(1))
    found: dict[str, float] = {}
    for span in spans(family.stages(config), clock.total):
        rates = sum(learning_rate(schedule, config.optim.lr, span, step) for step in range(span.first, span.end))
        chosen = select(parameters, span.stage)
        names = {id(parameter): name for name, parameter in chosen.items()}
        for group in optim.build(chosen, family.group, config.optim, span.stage.lr_scales).param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                found[name] = found.get(name, 0.0) + rates * group["lr_scale"]
    return found


def _room(device: torch.device) -> int | None:
    """Bytes of a GPU that this process can have; None without one."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device))


def memory(
    family: Family, config: RunConfig, sources: Sources, where: tuple[torch.device, int | None], world: int
) -> Finding:
    """What a step is foreseen to need, and whether the GPU has it. ``where``: device, and bytes that it has for this
    process; None: nothing to compare with."""
    device, room = where
    rows = share_of(config, world).rows
    found = _demand(family, config, sources, rows, device)
    text = f"{rows_text(rows)} at a time: {parts_text(found)}"
    if room is None:
        return Finding("memory foreseen", text)
    verdict = "fits" if found.total <= TIGHT * room else "tight" if found.total <= room else "does not fit"
    text = f"{text}, of {size_text(room)} that the GPU has: {verdict}"
    other = 1 if rows > 1 else 2
    low = _demand(family, config, sources, other, device).total
    slope = (found.total - low) / (rows - other)
    fitting = [one for one in divisions(config, world) if low + slope * (one.rows - other) <= TIGHT * room]
    if fitting:
        best = fitting[0]
        text += (
            f"; the most that does: {rows_text(best.rows)} (train.micro_batches={best.micro_batches}, the same steps)"
        )
    elif found.levers:
        text += f"; nor do fewer rows; {', '.join(found.levers)}"
    over = found.total > room
    if over and fitting and found.levers:
        text += f", or {', '.join(found.levers)}"
    return Finding("memory foreseen", text, verdict != "fits", f"memory: {text}" * over)


def _demand(family: Family, config: RunConfig, sources: Sources, rows: int, device: torch.device) -> Demand:
    assert family.demand is not None
    return family.demand(config, sources, rows, device)
