"""What ``sensorium check`` says of a `climate_text` run before it trains anything: rows of a step, what is assumed of
the fields, the kept tokens on the disk, and what the host must hold."""

from __future__ import annotations

from collections.abc import Iterator

from sensorium.data.features import cache_info, default_root
from sensorium.engine.contract import Ahead, Finding
from sensorium.families.climate_text.assumed import assumed
from sensorium.families.climate_text.data import EvalSource, TrainSource
from sensorium.families.climate_text.memory import learning, state
from sensorium.families.climate_text.task import ClimateTextTask, sections
from sensorium.families.climate_text.token_cache import TokenStore


def outlook(ahead: Ahead) -> list[Finding]:
    """Rows of the check."""
    assert isinstance(ahead.task, ClimateTextTask)
    assert isinstance(ahead.sources.train, TrainSource)
    train = ahead.config.train
    processes = max(1, train.batch_size // (ahead.rows * train.micro_batches))
    batch = f"{ahead.rows} rows x {train.micro_batches} micro-batches x {processes} processes"
    return [
        Finding("effective batch", f"{batch} = {train.batch_size} rows a step"),
        *inputs(ahead),
        kept(ahead),
        host(ahead, ahead.task),
    ]


def inputs(ahead: Ahead) -> Iterator[Finding]:
    """What is assumed or approximate in the fields of each split."""
    splits = {"train": ahead.sources.train, "val": ahead.sources.val, "test": ahead.sources.test}
    for split, source in splits.items():
        if isinstance(source, TrainSource | EvalSource):
            notes = assumed(source.part)
            text = "; ".join(notes) or "positions, times and channels are those of the files"
            yield Finding(f"inputs: {split}", text, warning=bool(notes))


def kept(ahead: Ahead) -> Finding:
    """The tokens of the fields on the disk, and the time that it takes to encode them."""
    assert isinstance(ahead.sources.train, TrainSource)
    _, data = sections(ahead.config)
    tokens = ahead.sources.train.inputs.tokens
    if not isinstance(tokens, TokenStore):
        why = "the encoder learns" if data.cache else "data.cache is false"
        return Finding("kept tokens", f"none: {why}, so each step encodes its fields")
    size = sum(one.bytes for one in cache_info(default_root()) if one.name == tokens.store.namespace)
    count = len({key for keys in tokens.keys.values() for key in keys})
    text = f"{count:,} fields, {size / 1e6:,.1f} MB on disk with those of other runs"
    if not tokens.encoded:
        return Finding("kept tokens", f"{text}; all were there")
    each = tokens.seconds / tokens.encoded
    return Finding(
        "kept tokens", f"{text}; {tokens.encoded:,} encoded now in {tokens.seconds:.3g} s, {each:.3g} s each"
    )


def host(ahead: Ahead, task: ClimateTextTask) -> Finding:
    """What lies in the memory of the host, whatever the device: the task while it is read, and what is offloaded."""
    read = sum(tensor.nbytes for tensor in (*task.parameters(), *task.buffers()))
    text = f"{read / 1e6:,.1f} MB while weights are read"
    offloaded = state(ahead.config, sum(parameter.numel() for parameter in learning(task))).host
    return Finding("host memory", text + f"; {offloaded / 1e6:,.1f} MB of optimizer and gradients" * bool(offloaded))
