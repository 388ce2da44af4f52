"""What `sensorium data download` and the scripts of the guides share: a table, a question, progress, an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sensorium.errors import ConfigError, DataError, DiskError, RunError, printable

if TYPE_CHECKING:
    from sensorium.data.catalog import Remote
    from sensorium.data.collect import Plan, Wishes
    from sensorium.data.transfer import Watch

PARTIAL = 3
"""Exit code: what is left has to be done by hand, or can be had in part only."""


@dataclass(frozen=True)
class Flags:
    """What can be asked for. ``copies``: a folder of archives. ``limit``, ``cookies``: of the clips (``audio``)."""

    copies: Path | None = None
    skip_existing: bool = False
    verify: bool = False
    audio: bool = False
    limit: int | None = None
    cookies: Path | None = None
    keep_archives: bool = False


_ASKED = 20_000_000_000  # bytes; above, whoever sits there is asked
_WORTH_A_LINE = 50_000_000  # bytes; on a pipe, the progress of less than that is not worth a line


def size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def remote_size(remote: Remote) -> str:
    if remote.size is None:
        return "size not known"
    return f"{'' if remote.exact else 'about '}{size(remote.size)}"


def table(plan: Plan) -> list[str]:
    """The lines of a table: data set, bytes, how it comes, what is missing; its licence below; then the free space."""
    from sensorium.data import acquire, catalog

    rows = [("data set", "bytes", "how", "missing")]
    licences = [""]
    for goal, root in plan:
        sources = catalog.find(goal.sources)
        files = [remote for source in sources for remote in source.files]
        sizes = [remote.size for remote in files if remote.size is not None]
        exact = all(remote.exact for remote in files if remote.size is not None)
        whole = f"{sum(sizes):,}" if exact else f"about {size(sum(sizes))}"
        whole += " and more" if len(sizes) < len(files) else ""
        sound = sum(source.clips for source in sources)
        how = "manual" if not files else f"automatic; sound by --audio, {size(sound)}" if sound else "automatic"
        state = f"{len(acquire.jobs(sources, root))} of {len(files)} files" if files else ""
        rows.append((goal.name, whole if files else "", how, state))
        licences.append(" / ".join(dict.fromkeys(source.licence for source in sources)))
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(3)]
    lines = []
    for row, licence in zip(rows, licences, strict=True):
        lines.append("".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip())
        lines += [f"{'':{widths[0]}}licence: {licence}"] if licence else []
    free = dict.fromkeys(f"{size(acquire.free_space(root))} are free in {root.parent}" for _, root in plan)
    return [*lines, *free]


def wishes(flags: Flags) -> Wishes:
    """Raises ConfigError when flags do not go together, or name what is not there."""
    from sensorium.data import acquire, clips, collect

    for flag, path, kind in (("--from", flags.copies, Path.is_dir), ("--cookies", flags.cookies, Path.is_file)):
        if path is not None and not kind(path):
            raise ConfigError(f"{flag} {path}: no such {'folder' if flag == '--from' else 'file'}")
    if not flags.audio and (flags.limit is not None or flags.cookies is not None):
        raise ConfigError("--limit and --cookies are for the clips of AudioCaps; give --audio, too")
    return collect.Wishes(
        acquire.Choices(flags.keep_archives, flags.copies, rehash=not flags.skip_existing),
        clips.Wishes(flags.limit, flags.cookies) if flags.audio else None,
        trust=flags.skip_existing,
        verify=flags.verify,
    )


def agreed(plan: Plan) -> bool:
    """Whether much may come; nobody is asked where nobody sits."""
    from sensorium.data import acquire, catalog

    coming = sum(job.remote.size or 0 for goal, root in plan for job in acquire.jobs(catalog.find(goal.sources), root))
    if coming < _ASKED or not sys.stdin.isatty():
        return True
    return input(f"Download {size(coming)}? [y/N] ").strip().lower() in ("y", "yes")


def run(plan: Plan, wishes: Wishes) -> int:
    """Get all that can be got, and say what is left; the exit code, 0 or PARTIAL.

    Raises RunError (exit code 1) when something failed, DataError (2) when nothing can be begun: a disk is too small,
    or a program missing.
    """
    from sensorium.data import collect

    try:
        collect.require_possible(plan, wishes)
        with progress() as watch:
            outcomes = [collect.collect(goal, root, wishes, watch) for goal, root in plan]
    except DiskError as error:
        raise DataError(str(error)) from error
    for outcome, (_, root) in zip(outcomes, plan, strict=True):
        if outcome.state == "complete":
            print(f"{outcome.name}: complete, in {root}")
        for line in outcome.left:
            print(printable(f"left to do: {line}"))
    if failed := [line for outcome in outcomes for line in outcome.failed]:
        raise RunError("\n".join(failed))
    return 0 if all(outcome.state == "complete" for outcome in outcomes) else PARTIAL


@contextmanager
def progress() -> Iterator[Watch]:
    """A bar with rate and time left on a terminal; on a pipe a line at each quarter of what takes a while."""
    from rich import progress
    from rich.text import Text

    from sensorium.data.transfer import Watch

    bar = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=None),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        expand=True,
        transient=True,
    )
    bar.disable = not bar.console.is_terminal
    tasks: dict[str, progress.TaskID] = {}
    quarters: dict[str, int] = {}

    def say(text: str) -> None:
        bar.console.print(Text(printable(text)), soft_wrap=True)

    def move(what: str, done: int, total: int | None) -> None:
        if what not in tasks:
            for task in tasks.values():
                bar.update(task, visible=False)
            tasks[what] = bar.add_task(what, total=total, completed=done)
        bar.update(tasks[what], completed=done, total=total)
        quarter = 4 * done // total if total else 0
        if bar.disable and total and total >= _WORTH_A_LINE and quarter > quarters.setdefault(what, quarter):
            quarters[what] = quarter
            speed = bar.tasks[-1].finished_speed or bar.tasks[-1].speed or 0
            say(f"{what}: {25 * quarter} % of {size(total)}, {size(int(speed))}/s")

    with bar:
        yield Watch(say, move)
