"""``sensorium data``: list, download, import and verify data sets; look into the feature cache."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sensorium import downloads
from sensorium.errors import printable

if TYPE_CHECKING:
    from sensorium.data.acquire import Choices, Job
    from sensorium.data.catalog import Remote, Source

app = typer.Typer(help="Data sets and the feature cache.", no_args_is_help=True, rich_markup_mode=None)
cache = typer.Typer(help="The cache of frozen features.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache, name="cache")

Reader = Annotated[str, typer.Argument(help="A reader, see `sensorium data list`.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the data set, where the reader does not know it.")]
Options = Annotated[list[str] | None, typer.Argument(metavar="[OPTION=VALUE]...", help="The reader's own options.")]


@app.command("list", epilog="Example: sensorium data list")
def list_data() -> None:
    """List the formats that can be read and the data sets that can be downloaded, with licences and sizes."""
    from sensorium.data import readers
    from sensorium.data.catalog import CATALOGUE
    from sensorium.data.fields.formats import FORMATS

    typer.echo("Formats that can be read:")
    for name in readers.names():
        module = readers.load(name)
        typer.echo(f"{name:14} {module.SUMMARY}\n{'':14} licence: {module.LICENCE}")
    typer.echo("\nGridded fields, which are imported into a tree of their own:")
    for form in FORMATS.values():
        typer.echo(f"{form.name:14} {form.summary}\n{'':14} licence: {form.licence}")
    typer.echo("\nData sets that `sensorium data download NAME --root FOLDER` knows:")
    for source in CATALOGUE.values():
        _describe(source, set(source.files))


def _describe(source: Source, missing: set[Remote]) -> None:
    """A data set: what it is, its licence, its files."""
    typer.echo(f"{source.name:14} {source.summary}\n{'':14} licence: {source.licence}")
    if source.manual:
        typer.echo(f"{'':14} by hand: {source.manual}")
    for remote in source.files:
        proof = "" if remote.md5 or remote.sha256 else "  no checksum published"
        state = f"{downloads.remote_size(remote)}{proof}" if remote in missing else "already there"
        typer.echo(f"{'':14} {remote.name:32} {state}")


@app.command(epilog="Example: sensorium data download flickr8k facc --root data/flickr8k")
def download(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Data sets, see `sensorium data list`; all: each in its own folder."),
    ],
    root: Annotated[Path, typer.Option(help="Folder in which they are unpacked.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be downloaded.")] = False,
    keep_archives: Annotated[bool, typer.Option("--keep-archives", help="Keep them in ROOT/archives.")] = False,
    copies: Annotated[
        Path | None, typer.Option("--from", help="Folder with archives that are used instead of downloading them.")
    ] = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Compare what is there by name and size only, without hashing it.")
    ] = False,
    check: Annotated[bool, typer.Option("--verify", help="Fetch nothing; hash what is there.")] = False,
    audio: Annotated[bool, typer.Option("--audio", help="Cut the clips of AudioCaps from YouTube (yt-dlp).")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Clips of each list of AudioCaps, at most.")] = None,
    cookies: Annotated[Path | None, typer.Option(help="File of cookies for yt-dlp.")] = None,
) -> None:
    """Download and unpack data sets; run it again after an interruption.

    Exit code 0: all is there and verified; 3: the rest is left to be done by hand; 1: something failed; 2: nothing was
    begun, as the command or the disk does not allow it.
    """
    from sensorium.data import acquire, catalog
    from sensorium.errors import ConfigError

    flags = downloads.Flags(copies, skip_existing, check, audio, limit, cookies, keep_archives)
    wishes = downloads.wishes(flags)
    if "all" in names:
        plan = [(goal, root / goal.name) for goal in catalog.goals(names)]
    else:
        plan = [(catalog.Goal(", ".join(dict.fromkeys(names)), tuple(names), ""), root)]
    coming = False
    for goal, place in plan:
        sources = catalog.find(goal.sources)
        todo = acquire.jobs(sources, place)
        for source in sources:
            _describe(source, {job.remote for job in todo})
        if todo and not check:
            _announce(todo, place, wishes.choices)
            coming = True
    if dry_run:
        return
    if coming and not yes and not sys.stdin.isatty():
        raise ConfigError("nobody is there to be asked; nothing was downloaded. Add --yes to go on, or --dry-run")
    if coming and not yes:
        typer.confirm(f"Download into {root}?", abort=True)
    raise typer.Exit(downloads.run(plan, wishes))


def _announce(todo: list[Job], root: Path, choices: Choices) -> None:
    """How much will come. Raises DataError when it will not fit."""
    from sensorium.data import acquire

    sizes = [job.remote.size for job in todo]
    unknown = f" and {sizes.count(None)} of unknown size" if None in sizes else ""
    needed, free = acquire.needed_space(todo, root, choices), acquire.free_space(root)
    files = "1 file" if len(todo) == 1 else f"{len(todo)} files"
    typer.echo(
        f"{files}, {downloads.size(sum(size or 0 for size in sizes))}{unknown}; up to {downloads.size(needed)} are "
        f"needed in {root}, {downloads.size(free)} are free"
    )
    acquire.check_space(todo, root, choices)


@app.command("import", epilog="Example: sensorium data import flickr8k data/native --root data/flickr8k")
def import_data(
    reader: Reader,
    target: Annotated[Path, typer.Argument(help="New folder for it.")],
    options: Options = None,
    root: Root = None,
    copy: Annotated[bool, typer.Option(help="Copy files instead of linking to them.")] = False,
    form: Annotated[str, typer.Option("--format", help="What is written: native, coco, clotho or videos.")] = "native",
) -> None:
    """Turn a data set of any format into the native one (manifest.jsonl and its files), or into a tree like COCO's
    (pictures, captions, Karpathy's split), Clotho's (sounds, captions) or a plain one of videos. Gridded fields
    (`climate`, `wxcbench-text`) become a tree of fields with texts."""
    from sensorium.config import parse_overrides
    from sensorium.data import manage, readers
    from sensorium.data.fields.formats import FORMATS

    if reader in FORMATS:
        _import_fields(reader, target, options or [], root)
        return
    dataset = readers.read(reader, root, parse_overrides(options or []))
    count = len(dataset.items)
    if form == "native":
        manage.import_dataset(dataset, target, copy=copy)
    else:
        count = manage.write_tree(dataset, target, form, copy=copy)
    left_out = len(dataset.items) - count
    rest = f"; {left_out:,} left out that lack what the form {form!r} consists of" if left_out else ""
    typer.echo(f"{count} items in {target}{rest}")


def _import_fields(name: str, target: Path, options: list[str], root: Path | None) -> None:
    from sensorium.data.fields import formats
    from sensorium.engine.tracking import progress_bar

    with progress_bar("import", 1) as advance:
        done = formats.bring(name, target, options, root, advance)
    for note in done.notes:
        typer.echo(printable(note))
    counts = ", ".join(f"{split} {count:,} ({done.fields[split]:,} fields)" for split, count in done.entries.items())
    typer.echo(f"{target}: entries of {counts}")


@app.command(epilog="Example: sensorium data verify native --root data/native")
def verify(
    reader: Reader,
    options: Options = None,
    root: Root = None,
    decode: Annotated[bool, typer.Option(help="Decode every picture, sound and video.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Of fields: positions must be given.")] = False,
) -> None:
    """Check a data set: counts, missing and broken files, overlap of splits. Exit code 2 when something is wrong; of a
    tree of fields (`climate`) 1, and validation_report.json says everything."""
    from sensorium.config import parse_overrides
    from sensorium.data import manage, readers
    from sensorium.data.fields import formats
    from sensorium.engine.tracking import progress_bar

    if reader == formats.TREE:
        _verify_fields([*(options or []), *(["strict=true"] if strict else [])], root)
        return
    dataset = readers.read(reader, root, parse_overrides(options or []))
    for note in dataset.notes:
        typer.echo(printable(note))
    files = {path for item in dataset.items for path in item.files.values()}
    with progress_bar("verify", len(files)) as advance:
        report = manage.verify_dataset(dataset, decode=decode, progress=advance)
    for split, counts in report.counts.items():
        typer.echo(f"{split:6} " + "  ".join(f"{name} {count:,}" for name, count in counts.items()))
    for problem in report.problems:
        typer.echo(printable(f"problem: {problem}"), err=True)
    if report.problems:
        raise typer.Exit(2)
    typer.echo("no overlap of the splits, no problem found")


def _verify_fields(options: list[str], root: Path | None) -> None:
    from sensorium.data.fields import formats
    from sensorium.engine.tracking import progress_bar

    with progress_bar("verify", 1) as advance:
        report = formats.verify(root, options, advance)
    for line in report.lines():
        typer.echo(printable(line), err=line.startswith(("problem", "  ")))
    if report.problems:
        raise typer.Exit(1)


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
