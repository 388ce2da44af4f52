"""``sensorium data``: list, download, import and verify data sets; look into the feature cache."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sensorium.errors import printable

if TYPE_CHECKING:
    from sensorium.data.acquire import Choices, Job
    from sensorium.data.catalog import Remote, Source
    from sensorium.data.transfer import Watch

app = typer.Typer(help="Data sets and the feature cache.", no_args_is_help=True, rich_markup_mode=None)
cache = typer.Typer(help="The cache of frozen features.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache, name="cache")

_WORTH_A_LINE = 50_000_000  # bytes; on a pipe, the progress of less than that is not worth a line

Reader = Annotated[str, typer.Argument(help="A reader, see `sensorium data list`.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the data set, where the reader does not know it.")]
Options = Annotated[list[str] | None, typer.Argument(metavar="[OPTION=VALUE]...", help="The reader's own options.")]


@app.command("list", epilog="Example: sensorium data list")
def list_data() -> None:
    """List the formats that can be read and the data sets that can be downloaded, with licences and sizes."""
    from sensorium.data import readers
    from sensorium.data.catalog import CATALOGUE

    typer.echo("Formats that can be read:")
    for name in readers.names():
        module = readers.load(name)
        typer.echo(f"{name:14} {module.SUMMARY}\n{'':14} licence: {module.LICENCE}")
    typer.echo("\nData sets that `sensorium data download NAME --root FOLDER` knows:")
    for source in CATALOGUE.values():
        _describe(source, set(source.files))


def _describe(source: Source, missing: set[Remote]) -> None:
    """A data set: what it is, its licence, its files."""
    typer.echo(f"{source.name:14} {source.summary}\n{'':14} licence: {source.licence}")
    if source.manual:
        typer.echo(f"{'':14} not by this program: {source.manual}")
    for remote in source.files:
        proof = "" if remote.md5 or remote.sha256 else "  no checksum published"
        state = f"{_remote_size(remote)}{proof}" if remote in missing else "already there"
        typer.echo(f"{'':14} {remote.name:32} {state}")


def _remote_size(remote: Remote) -> str:
    if remote.size is None:
        return "size not known"
    return f"{'' if remote.exact else 'about '}{_size(remote.size)}"


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


@app.command(epilog="Example: sensorium data download flickr8k facc --root data/flickr8k")
def download(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Data sets, see `sensorium data list`.")],
    root: Annotated[Path, typer.Option(help="Folder in which they are unpacked.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be downloaded.")] = False,
    keep_archives: Annotated[bool, typer.Option("--keep-archives", help="Keep them in ROOT/archives.")] = False,
    copies: Annotated[
        Path | None, typer.Option("--from", help="Folder with archives that are used instead of downloading them.")
    ] = None,
) -> None:
    """Download and unpack data sets; run it again after an interruption. Exit code 2 when something is missing."""
    from sensorium.data import acquire, catalog
    from sensorium.errors import ConfigError, DataError

    if copies is not None and not copies.is_dir():
        raise ConfigError(f"--from {copies}: no such folder")
    sources, choices = catalog.find(names), acquire.Choices(keep_archives, copies)
    todo = acquire.jobs(sources, root)
    for source in sources:
        _describe(source, {job.remote for job in todo})
    if todo:
        _announce(todo, root, choices)
        if dry_run:
            return
        if not yes and not sys.stdin.isatty():
            raise ConfigError("nobody is there to be asked; nothing was downloaded. Add --yes to go on, or --dry-run")
        if not yes:
            typer.confirm(f"Download into {root}?", abort=True)
    if dry_run:
        return
    with _progress() as watch:
        problems = acquire.acquire(sources, root, choices, watch)
    if problems:
        raise DataError("\n".join(problems))
    typer.echo(f"{', '.join(source.name for source in sources)}: {'' if todo else 'already '}there, in {root}")


def _announce(todo: list[Job], root: Path, choices: Choices) -> None:
    """How much will come. Raises DataError when it will not fit."""
    from sensorium.data import acquire

    sizes = [job.remote.size for job in todo]
    unknown = f" and {sizes.count(None)} of unknown size" if None in sizes else ""
    needed, free = acquire.needed_space(todo, root, choices), acquire.free_space(root)
    files = "1 file" if len(todo) == 1 else f"{len(todo)} files"
    typer.echo(
        f"{files}, {_size(sum(size or 0 for size in sizes))}{unknown}; up to {_size(needed)} are needed in {root}, "
        f"{_size(free)} are free"
    )
    acquire.check_space(todo, root, choices)


@contextmanager
def _progress() -> Iterator[Watch]:
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
            say(f"{what}: {25 * quarter} % of {_size(total)}, {_size(int(speed))}/s")

    with bar:
        yield Watch(say, move)


@app.command("import", epilog="Example: sensorium data import flickr8k data/native --root data/flickr8k")
def import_data(
    reader: Reader,
    target: Annotated[Path, typer.Argument(help="New folder for it.")],
    options: Options = None,
    root: Root = None,
    copy: Annotated[bool, typer.Option(help="Copy pictures and sounds instead of linking to them.")] = False,
    form: Annotated[str, typer.Option("--format", help="What is written: native, coco or clotho.")] = "native",
) -> None:
    """Turn a data set of any format into the native one (manifest.jsonl and its files), or into a tree like COCO's
    (pictures, captions, Karpathy's split) or Clotho's (sounds, captions)."""
    from sensorium.config import parse_overrides
    from sensorium.data import manage, readers

    dataset = readers.read(reader, root, parse_overrides(options or []))
    count = len(dataset.items)
    if form == "native":
        manage.import_dataset(dataset, target, copy=copy)
    else:
        count = manage.write_tree(dataset, target, form, copy=copy)
    left_out = len(dataset.items) - count
    rest = f"; {left_out:,} left out that lack what the form {form!r} consists of" if left_out else ""
    typer.echo(f"{count} items in {target}{rest}")


@app.command(epilog="Example: sensorium data verify native --root data/native")
def verify(
    reader: Reader,
    options: Options = None,
    root: Root = None,
    decode: Annotated[bool, typer.Option(help="Decode every picture and sound.")] = True,
) -> None:
    """Check a data set: counts, missing and broken files, overlap of splits. Exit code 2 when something is wrong."""
    from sensorium.config import parse_overrides
    from sensorium.data import manage, readers
    from sensorium.engine.tracking import progress_bar

    dataset = readers.read(reader, root, parse_overrides(options or []))
    for note in dataset.notes:
        typer.echo(printable(note))
    files = {path for item in dataset.items for path in (item.image, item.audio) if path is not None}
    with progress_bar("verify", len(files)) as advance:
        report = manage.verify_dataset(dataset, decode=decode, progress=advance)
    for split, counts in report.counts.items():
        typer.echo(f"{split:6} " + "  ".join(f"{name} {count:,}" for name, count in counts.items()))
    for problem in report.problems:
        typer.echo(printable(f"problem: {problem}"), err=True)
    if report.problems:
        raise typer.Exit(2)
    typer.echo("no overlap of the splits, no problem found")


@cache.command(epilog="Example: sensorium data cache info")
def info() -> None:
    """Show what the feature cache holds."""
    from sensorium.data import features

    root = features.default_root()
    typer.echo(str(root))
    for entry in features.cache_info(root):
        typer.echo(f"{entry.name}  {entry.entries:8} entries  {entry.bytes / 1e6:9.1f} MB  {entry.encoder}")


@cache.command(epilog="Example: sensorium data cache clear")
def clear(
    namespace: Annotated[
        str | None, typer.Argument(help="Name of one namespace, as `info` prints it; default all.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete cached features; they can always be encoded again."""
    from sensorium.data import features

    root = features.default_root()
    if not yes:
        typer.confirm(f"Delete the cached features in {root}?", abort=True)
    typer.echo(f"{features.clear(root, namespace) / 1e6:.1f} MB freed")
