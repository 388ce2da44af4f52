"""TensorBoard event files: each start of a run adds one, and the view of all is that of a run never interrupted.

A file begins by saying from which step on what earlier ones hold counts no more. TensorBoard acts on that from the
second file that says so, hence the first one says it, too; and it reads the files by name, hence each takes a later
name than those that are there, even where the clock was set back. ``SummaryWriter`` does
neither.
"""

from __future__ import annotations

import importlib
import io
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from sensorium.files import make_folder, open_file, sync, told

PREFIX = "events.out.tfevents."


class EventFile:
    """The event file of one start, with ``start_step`` optimizer steps done before. Nothing waits in memory.

    ``names``: other names of some values, by their own.
    """

    def __init__(self, folder: Path, start_step: int, names: Mapping[str, str] | None = None) -> None:
        self._names = names or {}
        self._event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        records = importlib.import_module("tensorboard.summary.writer.record_writer")
        make_folder(folder)
        self._path = folder / _later_name(folder)
        self._file = open_file(self._path, "xb")
        sync(folder)
        self._records: Any = records.RecordWriter(self._file)
        self._add(self._event(file_version="brain.Event:2"))
        self._add(self._event(step=start_step + 1, session_log={"status": "START"}))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One event for all values of a step."""
        tags = {self._names.get(name, name): value for name, value in values.items()}
        entries = [self._summary.Value(tag=tag, simple_value=value) for tag, value in tags.items()]
        self._add(self._event(step=step, summary=self._summary(value=entries)))

    def draw(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """One event for all pictures of a step, PNGs by name."""
        entries = []
        for name, content in pictures.items():
            with Image.open(io.BytesIO(content)) as picture:
                size = {"width": picture.width, "height": picture.height, "colorspace": len(picture.getbands())}
            image = self._summary.Image(encoded_image_string=content, **size)
            entries.append(self._summary.Value(tag=self._names.get(name, name), image=image))
        self._add(self._event(step=step, summary=self._summary(value=entries)))

    def settle(self) -> None:
        """See to it that what was written survives a loss of power."""
        sync(self._path)

    def close(self) -> None:
        with suppress(OSError):  # all that could be written was flushed; what could not was said
            self._file.close()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        with told(self._path):
            self._records.write(event.SerializeToString())
            self._records.flush()


def _later_name(folder: Path) -> str:
    numbers = [path.name.removeprefix(PREFIX).partition(".")[0] for path in folder.glob(f"{PREFIX}*")]
    newest = max((int(number) for number in numbers if number.isdecimal()), default=0)
    return f"{PREFIX}{max(int(time.time()), newest + 1):010d}.{platform.node()}"
