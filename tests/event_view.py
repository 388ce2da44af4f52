"""What TensorBoard shows of a run."""

from __future__ import annotations

import importlib
from pathlib import Path

MEASURED = ("train/seconds_per_step", "train/peak_rss_bytes")


def scalars(folder: Path) -> dict[str, list[tuple[int, float | None]]] | None:
    """Steps and values of each curve, as TensorBoard itself reads the event files; of what is measured only the steps.

    Its own reader, not the ``EventAccumulator`` for users, which treats the first restart otherwise. None where the run
    writes none.
    """
    if not folder.exists():
        return None
    reading = "tensorboard.backend.event_processing."
    accumulator = importlib.import_module(f"{reading}plugin_event_accumulator")
    reader = accumulator.EventAccumulator(str(folder), tensor_size_guidance={"scalars": 0})
    reader.Reload()
    curves = {}
    for tag in reader.Tags()["tensors"]:
        events = reader.Tensors(tag)
        if not events[0].tensor_proto.float_val:  # a picture
            continue
        values = [None if tag in MEASURED else event.tensor_proto.float_val[0] for event in events]
        curves[tag] = list(zip([event.step for event in events], values, strict=True))
    return curves
