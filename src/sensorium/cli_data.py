"""``sensorium data``: list, import and verify data sets; look into the feature cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Data sets and the feature cache.", no_args_is_help=True, rich_markup_mode=None)
cache = typer.Typer(help="The cache of frozen features.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache, name="cache")

Reader = Annotated[str, typer.Argument(help="A reader, see `sensorium data list`.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the data set, where the reader does not know it.")]
Options = Annotated[list[str] | None, typer.Argument(metavar="[OPTION=VALUE]...", help="The reader's own options.")]


@app.command("list", epilog="Example: sensorium data list")
def list_readers() -> None:
    """List the formats that can be read, with their licences."""
    from sensorium.data import readers

    for name in readers.names():
        module = readers.load(name)
        typer.echo(f"{name:12} {module.SUMMARY}\n{'':12} licence: {module.LICENCE}")


@app.command("import", epilog="Example: sensorium data import flickr8k data/native --root data/flickr8k")
def import_data(
    reader: Reader,
    target: Annotated[Path, typer.Argument(help="New folder for manifest.jsonl.")],
    options: Options = None,
    root: Root = None,
    copy: Annotated[bool, typer.Option(help="Copy pictures and sounds instead of linking to them.")] = False,
) -> None:
    """Turn a data set of any format into the native one: manifest.jsonl and its files."""
    from sensorium.config import parse_overrides
    from sensorium.data import manage, readers

    dataset = readers.read(reader, root, parse_overrides(options or []))
    path = manage.import_dataset(dataset, target, copy=copy)
    typer.echo(f"{len(dataset.items)} items in {path}")


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
        typer.echo(note)
    with progress_bar("verify", len(dataset.items)) as advance:
        report = manage.verify_dataset(dataset, decode=decode, progress=advance)
    for split, counts in report.counts.items():
        typer.echo(f"{split:6} " + "  ".join(f"{name} {count}" for name, count in counts.items()))
    for problem in report.problems:
        typer.echo(f"problem: {problem}", err=True)
    if report.problems:
        raise typer.Exit(2)
    typer.echo("no problem found")


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
