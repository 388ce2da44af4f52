"""What a run says while it trains: console, ``metrics.jsonl``, ``times.jsonl``, ``train.log``, TensorBoard, W&B.

``metrics.jsonl`` holds only what follows from the position in the run (no clock, no machine), so that the file of a
resumed run equals the file of an uninterrupted one byte for byte. Everything that depends on when and where it ran goes
to ``times.jsonl``. On a terminal a progress bar is shown, on a pipe plain lines.

Used by one process of a run (rank 0). Nothing here imports torch before TensorBoard is asked for.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from sensorium.engine.curves import PREFIX, EventFile
from sensorium.engine.files import cut_back, json_line
from sensorium.engine.listener import Listener, Saved, ShardListener
from sensorium.engine.settings import Track
from sensorium.engine.wandb_curves import Wandb, import_wandb
from sensorium.errors import ConfigError, printable
from sensorium.files import free_name, make_folder, new_folder, open_file, remove, rename, sync, told, write_file

Level = Literal["info", "warning", "alarm"]
Advance = Callable[[int, int], None]
_RESERVED = ("kind", "step", "epoch", "stage")
_WINDOW = 50  # steps behind the running mean of the rate


def clock(seconds: float) -> str:
    """``0:42``, ``12:03`` or ``1:02:03``; ``-:--`` when unknown."""
    if not 0 <= seconds < 360_000:
        return "-:--"
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def duration_text(seconds: float) -> str:
    """Seconds as people read them."""
    return (
        f"{seconds:.2g} s" if seconds < 60 else clock(seconds) if seconds < 360_000 else f"{seconds / 86_400:.3g} days"
    )


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


class _Screen:
    """Standard output: lines, and on a terminal one bar below them."""

    def __init__(self, quiet: bool) -> None:
        self.console = Console(file=sys.stdout, quiet=quiet, highlight=False, soft_wrap=True)
        self.terminal = self.console.is_terminal and not quiet
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def open_bar(self, total: int, done: int) -> None:
        """Show the bar, if this is a terminal."""
        if not self.terminal:
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}", markup=False),
            TextColumn("{task.fields[status]}", markup=False),
        )
        self._bar = Progress(*columns, console=self.console, expand=True)
        self._task = self._bar.add_task("", total=total, completed=done, status="")
        self._bar.start()

    def move_bar(self, description: str, done: int, total: int, status: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=description, completed=done, total=total, status=status)

    def line(self, text: str, style: str = "") -> None:
        """Print one line above the bar. ``text`` is shown as it is, whatever brackets it holds."""
        self.console.print(Text(printable(text), style=style))

    def close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Rate:
    """Rows per second: over a running mean of about ``_WINDOW`` steps, and since the last line."""

    def __init__(self) -> None:
        self.mark = time.perf_counter()
        self.mean_rows = self.mean_seconds = 0.0

    def restart(self) -> None:
        self.mark = time.perf_counter()

    def tick(self, rows: int) -> tuple[float, float]:
        """Seconds of the step that just ended, and the running rate in rows a second."""
        now = time.perf_counter()
        seconds, self.mark = max(now - self.mark, 1e-9), now
        keep = 1 - 1 / _WINDOW
        self.mean_rows = keep * self.mean_rows + rows
        self.mean_seconds = keep * self.mean_seconds + seconds
        return seconds, self.mean_rows / self.mean_seconds


class _Sink(Protocol):
    """Where curves go besides the run folder."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def draw(self, step: int, pictures: Mapping[str, bytes]) -> None: ...

    def settle(self) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """Everything that rank 0 says of a run between its first and its last step.

    ``step`` is always the number of optimizer steps done after the one that is reported (the first is 1), and
    ``start_step`` the number done before. On a resume the two ``.jsonl`` files are cut back to ``start_step``; a
    checkpoint of step N must therefore be saved after everything of step N was reported here. Use as a context manager.

    Raises ConfigError when Weights & Biases is asked for and not installed, CheckpointError when a file of the run
    folder is damaged.
    """

    def __init__(
        self,
        run: Path,
        settings: Track,
        total_steps: int,
        start_step: int,
        quiet: bool = False,
        listener: Listener | None = None,
    ) -> None:
        self._settings, self._total, self._start, self._listener = settings, total_steps, start_step, listener
        self._run, self._drawn = run, False
        make_folder(run)
        for name in ("metrics.jsonl", "times.jsonl"):
            cut_back(run / name, start_step if start_step else -1)  # from the start, step 0 is said again too
        self._sinks: list[_Sink] = []
        if settings.wandb != "off":
            self._sinks.append(Wandb(run, settings))
        if settings.tensorboard:
            folder = _own_folder(run, settings.tensorboard_dir, "tensorboard", anew=not start_step)
            self._sinks.append(EventFile(folder, start_step, settings.tensorboard_names))
        self._metrics, self._times, self._log = (
            open_file(run / name, "a") for name in ("metrics.jsonl", "times.jsonl", "train.log")
        )
        self._screen, self._rate = _Screen(quiet), _Rate()
        if start_step:
            self._append_time({"step": start_step, "resumed": True})
        self._screen.open_bar(total_steps, start_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def train(self, step: int, epoch: float, stage: str, values: Mapping[str, float], rows: int) -> None:
        """Report one optimizer step of ``rows`` samples. ``values``: ``loss``, ``grad_norm``, ``lr/<group>`` and more.

        Raises ValueError when a value takes the name of a field of the line (kind, step, epoch, stage).
        """
        taken = [name for name in _RESERVED if name in values]
        if taken:
            raise ValueError(f"a logged value cannot be called {taken[0]!r}; reserved: {', '.join(_RESERVED)}")
        seconds, rate = self._rate.tick(rows)
        self._append({"kind": "train", "step": step, "epoch": epoch, "stage": stage, **values})
        self._append_time({"step": step, "seconds": round(seconds, 6), "rows_per_second": round(rows / seconds, 3)})
        names = {name: name if name.startswith("lr/") else f"train/{name}" for name in values}
        shown = {names[name]: value for name, value in values.items()}
        self._send(step, {**shown, f"stage/{stage}": 1.0, "train/seconds_per_step": seconds, **_memory()})
        left = clock((self._total - step) * rows / rate if rate else -1)
        speed = f"{rate:,.0f} rows/s  left {left}"
        loss, *others = _train_status(values)
        self._screen.move_bar(stage, step, self._total, f"{loss}  {speed}")
        if step % self._settings.log_every == 0 or step in (self._start + 1, self._total):
            text = "  ".join((f"step {step}/{self._total}", f"epoch {epoch:.2f}", loss, *others, speed))
            self._write_log(text)
            if not self._screen.terminal and self._listener is None:
                self._screen.line(text)
        if self._listener is not None:
            self._listener.stepped(step, epoch, values)

    def validation(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Report one evaluation on the validation split."""
        self._append({"kind": "val", "step": step, "epoch": epoch, "metrics": dict(metrics)})
        self._send(step, {f"val/{name}": value for name, value in metrics.items()})
        chosen = [name for name in metrics if "/" not in name] or list(metrics)[:4]
        text = f"val step {step}  " + "  ".join(f"{name} {_short(metrics[name])}" for name in chosen)
        if self._listener is None:
            self.say(text)
        else:
            self._write_log(text)
            self._listener.validated(step, epoch, metrics)
        self.restart_clock()

    def pictures(self, step: int, found: Mapping[str, bytes]) -> None:
        """Keep what the model draws at this step, PNGs by file name: as ``samples/step_00000500/NAME``, and as
        ``samples/NAME`` with the curves."""
        anew, self._drawn = not self._start and not self._drawn, True
        folder = _own_folder(self._run, self._settings.pictures_dir, "samples", anew=anew)
        target = folder / f"step_{step:08d}"
        remove(target)  # of the same step, before a resume
        with new_folder(target) as temporary:
            for name, content in found.items():
                write_file(temporary / name, content)
        for sink in self._sinks:
            sink.draw(step, {f"samples/{Path(name).stem}": content for name, content in found.items()})

    def saved(self, saved: Saved) -> None:
        """Report a complete checkpoint."""
        if self._listener is not None:
            self._listener.saved(saved)

    def shards(self, saved: Saved) -> Path | None:
        """Where the listener wants DeepSpeed's own files of a checkpoint, if it wants them."""
        return self._listener.shards(saved) if isinstance(self._listener, ShardListener) else None

    def settle(self) -> None:
        """See to it that what was said survives a loss of power; to be called before a checkpoint says so, too."""
        sync(Path(self._metrics.name))
        for sink in self._sinks:
            sink.settle()

    def event(self, step: int, text: str, level: Level = "info") -> None:
        """Report something worth knowing that follows from the position in the run (never a resume: the tracker notes
        those itself in ``times.jsonl``). An ``alarm`` stands in red on top of the report."""
        self._append({"kind": "event", "step": step, "level": level, "text": text})
        self._show(text, {"info": "", "warning": "yellow", "alarm": "bold red"}[level])

    def say(self, text: str) -> None:
        """Print a line without breaking the bar, and keep it in ``train.log``."""
        self._show(text, "")

    def restart_clock(self) -> None:
        """The time until now was not spent on steps (evaluation, saving): leave it out of the rate."""
        self._rate.restart()

    def close(self) -> None:
        """Close bar, files and sinks. Safe to call twice."""
        self._screen.close_bar()
        for file in (self._metrics, self._times, self._log):
            with suppress(OSError):  # all that could be written was flushed; what could not was said
                file.close()
        while self._sinks:
            self._sinks.pop().close()

    def _show(self, text: str, style: str) -> None:
        self._write_log(text)
        self._screen.line(text, style)

    def _write_log(self, text: str) -> None:
        _write(self._log, printable(text) + "\n")

    def _append(self, record: Mapping[str, Any]) -> None:
        _write(self._metrics, json_line(record))

    def _append_time(self, record: Mapping[str, Any]) -> None:
        _write(self._times, json_line(record))

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.write(step, values)


def _write(file: IO[str], line: str) -> None:
    with told(Path(file.name)):
        file.write(line)
        file.flush()


def _own_folder(run: Path, given: str | None, name: str, *, anew: bool) -> Path:
    """In the run folder, or where a setting says: there, what an earlier run wrote is set aside by a new one."""
    if given is None:
        return run / name
    folder = Path(given).expanduser()
    if anew and folder.exists():
        rename(folder, free_name(folder))
    return folder


def require(settings: Track) -> None:
    """Raise ConfigError, before anything slow is done, for what cannot be had or must not be touched."""
    if settings.wandb != "off":
        import_wandb()
    folder = None if settings.tensorboard_dir is None else Path(settings.tensorboard_dir).expanduser()
    if settings.tensorboard and folder is not None and folder.is_dir():
        strangers = sorted(path.name for path in folder.iterdir() if not path.name.startswith(PREFIX))
        if strangers:
            raise ConfigError(
                f"track.tensorboard_dir: {folder} holds more than curves ({strangers[0]} …); name a folder of its own"
            )


def _memory() -> dict[str, float]:
    """The largest so far of this process, and of the GPU where there is one."""
    torch = sys.modules.get("torch")  # who has not imported it has no GPU in use
    found = {"train/peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}
    if torch is not None and torch.cuda.is_available():
        found["train/peak_gpu_bytes"] = float(torch.cuda.max_memory_allocated())
    return found


def _train_status(values: Mapping[str, float]) -> list[str]:
    """``loss`` first, then what else is there of gradient norm and learning rate, that of most groups."""
    parts = [f"loss {values['loss']:.4f}" if "loss" in values else "loss n/a"]
    if "grad_norm" in values:
        parts.append(f"grad_norm {values['grad_norm']:.2f}")
    rates = [value for name, value in values.items() if name.startswith("lr/")]
    return [*parts, f"lr {statistics.mode(rates):.1e}"] if rates else parts


@contextmanager
def progress_bar(description: str, total: int, quiet: bool = False) -> Iterator[Advance]:
    """Progress of long work outside the training loop; yields ``advance(done, total)``.

    On a terminal a bar with rate and time left; on a pipe one line at 0, 25, 50, 75 and 100 percent.
    """
    screen, start = _Screen(quiet), time.perf_counter()
    quarters = 0

    def advance(done: int, total: int) -> None:
        nonlocal quarters
        seconds = max(time.perf_counter() - start, 1e-9)
        rate = done / seconds
        left = clock((total - done) / rate if rate else -1)
        status = f"{rate:,.1f}/s  left {left}"
        screen.move_bar(description, done, total, status)
        quarter = 4 * done // total if total else 4
        if not screen.terminal and quarter >= quarters:
            quarters = quarter + 1
            end = f"took {clock(seconds)}" if done >= total else f"left {left}"
            screen.line(f"{description}  {25 * quarter} %  {done:,}/{total:,}  {rate:,.1f}/s  {end}")

    screen.open_bar(total, 0)
    try:
        advance(0, total)
        yield advance
    finally:
        screen.close_bar()
