"""The verbs of the command line, nothing else. Heavy imports wait until a verb runs."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sensorium import __version__, cli_data, cli_draw, cli_evaluate, launched
from sensorium.errors import printable, shown

if TYPE_CHECKING:
    from sensorium.engine.contract import Family, Hit
    from sensorium.engine.settings import RunConfig

app = typer.Typer(
    name="sensorium",
    help="Train, evaluate and use multimodal models: one engine, one command line, one kind of run folder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Start with: sensorium demo --data synthetic",
)
app.add_typer(cli_data.app, name="data")
app.command(epilog=cli_draw.EXAMPLE)(cli_draw.generate)
app.command(epilog=cli_evaluate.EXAMPLE)(cli_evaluate.evaluate)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Settings, see docs/config.md.")
]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PRESET] [SECTION.KEY=VALUE]...", help="Starting values; settings, see docs/config.md."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
FamilyName = Annotated[str, typer.Argument(metavar="FAMILY", help="A family, see `sensorium families`.")]
Preset = Annotated[str | None, typer.Option(help="Starting values; default is the family's first preset.")]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML, JSON or TOML file over the preset.")]
NewRun = Annotated[Path | None, typer.Option(help="Run folder; default runs/<family>-<preset>.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sensorium {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command(epilog="Example: sensorium demo --data stamps --languages fr,es")
def demo(
    data: Annotated[str, typer.Option(help="emoji, stamps or synthetic.")] = "emoji",
    languages: Annotated[str, typer.Option(help="Spoken languages of the stamps, separated by commas.")] = "fr",
    run: Annotated[Path | None, typer.Option(help="Run folder; default runs/demo-<data>.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run.")] = 0,
    overrides: Overrides = None,
) -> None:
    """Train on small real data in minutes, search, and write a report."""
    from sensorium.demo import run_demo

    run_demo(data, languages.split(","), run or Path("runs") / f"demo-{data}", seed, overrides or [])


@app.command(epilog="Example: sensorium train thinking tiny --run runs/first train.steps=50")
def train(
    family: FamilyName,
    words: Words = None,
    preset: Preset = None,
    config: ConfigFile = None,
    run: NewRun = None,
) -> None:
    """Train a model. Ctrl-C saves and stops; `sensorium resume RUN` continues bit for bit."""
    chosen, resolved = _configured(family, words or [], preset, config)
    cli_evaluate.spread(resolved)
    from sensorium.engine import loop  # not before: who only starts the others does not need it

    loop.train(chosen, resolved, run or Path("runs") / f"{family}-{resolved.preset}")


@app.command(epilog="Example: sensorium check thinking tiny train.batch_size=32")
def check(
    family: FamilyName,
    words: Words = None,
    preset: Preset = None,
    config: ConfigFile = None,
    run: NewRun = None,
    as_json: AsJson = False,
) -> None:
    """Before a long run: try data, steps, resume and validation; predict memory, time and disk. Writes no run."""
    from sensorium.engine import check as preflight

    chosen, resolved = _configured(family, words or [], preset, config)
    report = preflight.check(chosen, resolved, run or Path("runs") / f"{family}-{resolved.preset}", quiet=as_json)
    options = {"--preset": preset, "--config": config, "--run": run}
    given = [str(word) for name, value in options.items() if value is not None for word in (name, value)]
    command = shlex.join(["sensorium", "train", family, *given, *(words or [])])
    if as_json:
        typer.echo(json.dumps({**report.as_json(), "command": command}, ensure_ascii=False, indent=1))
    else:
        preflight.print_report(report)
    report.refuse()
    if not as_json:
        typer.echo(f"ready: {command}")


@app.command(epilog="Example: sensorium profile video_retrieval --rows 8 model.frames=64")
def profile(
    family: FamilyName,
    words: Words = None,
    preset: Preset = None,
    config: ConfigFile = None,
    rows: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Timed passes; the median counts.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Compare what a family's models cost: parameters, arithmetic, time, memory. Needs no data."""
    from dataclasses import asdict

    from sensorium.engine.meter import Stopwatch
    from sensorium.engine.tables import print_table
    from sensorium.errors import ConfigError

    chosen, resolved = _configured(family, words or [], preset, config)
    if chosen.profile is None:
        raise ConfigError(f"family {family!r} has no models to compare; `sensorium check {family}` measures a run")
    table = chosen.profile(resolved, Stopwatch(resolved.train.device, rows, repeats=repeats))
    if as_json:
        typer.echo(json.dumps(asdict(table), ensure_ascii=False, indent=1))
    else:
        print_table(table)


@app.command(epilog="Example: sensorium resume runs/first train.steps=100")
def resume(run: RunFolder, overrides: Overrides = None) -> None:
    """Continue an interrupted run exactly, or make a finished one longer."""
    from sensorium import config as configuration
    from sensorium.engine import loop, session, settings
    from sensorium.use import family_of

    chosen = family_of(run)
    stored = session.read_config(chosen, run)
    layers = (configuration.dump(stored), configuration.parse_overrides(overrides or []))
    wanted = settings.resolve(chosen, stored.preset, *layers)
    configuration.check_resume(stored, wanted)
    cli_evaluate.spread(wanted)
    loop.train(chosen, wanted, run, resume=True)


@app.command(epilog="Example: sensorium report runs/first")
def report(run: RunFolder) -> None:
    """Write report.html, report.md and report.json of a run."""
    from sensorium.engine import rundir
    from sensorium.engine.report import write_report

    rundir.stored_config(run)
    typer.echo(f"Report: {write_report(run)}")


@app.command(epilog='Example: sensorium search runs/demo-emoji "a barking dog" --in image --top 5')
def search(
    run: RunFolder,
    text: Annotated[str | None, typer.Argument(help="Words to look for.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to look for.")] = None,
    audio: Annotated[Path | None, typer.Option(help="A recording to look for.")] = None,
    video: Annotated[Path | None, typer.Option(help="A video to look for.")] = None,
    queries: Annotated[Path | None, typer.Option(help="JSON file: a list of texts, or of {modality: value}.")] = None,
    among: Annotated[str | None, typer.Option("--in", help="What to find: image, text, audio or video.")] = None,
    videos: Annotated[Path | None, typer.Option(help="Look among the videos of this folder, not in the data.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many to find.")] = 5,
    rerank: Annotated[int, typer.Option(min=0, help="Order so many of the best anew with the match head.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Find pictures, texts, sounds or videos by words, a picture, a recording, or several of them at once."""
    from dataclasses import asdict

    from sensorium.errors import ConfigError
    from sensorium.use import load, read_queries, searcher_within

    parts = {"text": text, "image": image, "audio": audio, "video": video}
    query = {modality: str(value) for modality, value in parts.items() if value is not None}
    if not query and queries is None:
        raise ConfigError(
            "nothing to look for; give words, --image FILE, --audio FILE or --video FILE, or many with --queries FILE"
        )
    if query and queries is not None:
        raise ConfigError("--queries FILE holds the queries; give no other beside it")
    many = [query] if queries is None else read_queries(queries)
    searcher = load(run) if videos is None else searcher_within(run, videos)
    found = [searcher.search(one, among, top, rerank) for one in many]
    if as_json:
        content = [[asdict(hit) for hit in hits] for hits in found]
        typer.echo(printable(json.dumps(content if queries else content[0], ensure_ascii=False, indent=1)))
        return
    for one, hits in zip(many, found, strict=True):
        if queries is not None:
            typer.echo(printable(" ".join(one.values())))
        for place, hit in enumerate(hits, start=1):
            typer.echo(printable(f"{place:3}  {hit.score:6.3f}  {hit.text or hit.id}  {_where(hit, among)}"))


def _where(hit: Hit, among: str | None) -> str:
    """The file that was found, and the part of it."""
    files = ({"audio": hit.audio}.get(among or ""), hit.image, hit.video, hit.audio)
    file = next((value for value in files if value), "")
    return file if hit.segment is None else f"{file}  {hit.segment[0]:.1f}-{hit.segment[1]:.1f} s"


@app.command(epilog='Example: sensorium answer runs/first --field era5.nc --question "Where is the strongest anomaly?"')
def answer(
    run: RunFolder,
    field: Annotated[Path, typer.Option(help="A .pt of a data tree, or NetCDF, Zarr, GRIB, .npz.")],
    question: Annotated[str, typer.Option(help="What to ask about it.")],
    time: Annotated[str | None, typer.Option(help="Its time in UTC, or FROM/TO; the last one.")] = None,
    bbox: Annotated[str | None, typer.Option(help="W,S,E,N: a part of the map, degrees.")] = None,
    variables: Annotated[str | None, typer.Option(help="Which variable is which: map.yaml, or a preset.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also answer without the field.")] = False,
    picture: Annotated[Path | None, typer.Option("--map", help="Draw what was looked at: a .png.")] = None,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or the name of a checkpoint folder.")] = "best",
    as_json: AsJson = False,
) -> None:
    """Ask a trained model about a field of weather or climate."""
    from sensorium import use
    from sensorium.engine.contract import Looked
    from sensorium.files import write_file

    looked = Looked(field, time, use.read_box(bbox), variables)
    said = (lambda piece: None) if as_json else (lambda piece: typer.echo(printable(piece), nl=False))
    found = use.answerer(run, checkpoint).answer_file(
        question, looked, said, compare=compare, picture=picture is not None
    )
    if picture is not None and found.picture is not None:
        write_file(picture, found.picture)
    if as_json:
        content = {"question": question, "answer": found.text, "notes": found.notes}
        content |= {"without_field": found.without} if compare else {}
        content |= {"map": str(picture)} if picture is not None else {}
        typer.echo(printable(json.dumps(content, ensure_ascii=False, indent=1)))
        return
    typer.echo("")
    for line in (*([f"without the field: {found.without}"] if compare else []), *(f"note: {n}" for n in found.notes)):
        typer.echo(printable(line))


@app.command(epilog="Example: sensorium export runs/first --format hf --out models/first")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; or the word climate-encoder.")],
    source: Annotated[
        Path | None, typer.Argument(help="With climate-encoder: the downloaded .pt of Prithvi WxC.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="A format of the family: hf, onnx, …")] = "hf",
    checkpoint: Annotated[str, typer.Option(help="best, latest, or the name of a checkpoint folder.")] = "best",
    out: Annotated[
        Path | None, typer.Option("--out", "--output", help="New folder; default RUN/export/<format>.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="With climate-encoder: fp32 or bf16.")] = "fp32",
    trust_checkpoint: Annotated[
        bool, typer.Option("--trust-checkpoint", help="With climate-encoder: code in the file may run.")
    ] = False,
) -> None:
    """Write the trained model into a folder of its own: safetensors and a model card, or ONNX. As `export
    climate-encoder prithvi.wxc.2300m.v1.pt --output prithvi`: only the encoder of a downloaded Prithvi WxC."""
    from sensorium import use
    from sensorium.errors import ConfigError

    if run == Path("climate-encoder"):
        if source is None or out is None:
            raise ConfigError("export climate-encoder: give the downloaded .pt and --output NEW_FOLDER")
        typer.echo(f"{out}: {_export_encoder(source, out, dtype, trust_checkpoint)}")
        return
    if source is not None or dtype != "fp32" or trust_checkpoint:
        raise ConfigError(f"{source or 'this option'}: belongs to `sensorium export climate-encoder SOURCE`")
    folder, line = use.export(run, form, checkpoint, out)
    typer.echo(f"{folder}: {line}")


def _export_encoder(source: Path, out: Path, dtype: str, trusted: bool) -> str:
    from sensorium.engine.tracking import progress_bar
    from sensorium.errors import ConfigError
    from sensorium.families.climate_text.export_encoder import DTYPES, export_encoder

    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: allowed are {', '.join(DTYPES)}")
    with progress_bar("export", 100) as advance:
        return export_encoder(
            source, out, dtype, trusted=trusted, advance=lambda done, total: advance(done * 100 // total, 100)
        )


@app.command(epilog="Example: sensorium families")
def families() -> None:
    """List the families and their presets."""
    from sensorium import families as package

    for name in package.names():
        family = package.load(name)
        typer.echo(f"{name:16} {family.summary}\n{'':16} presets: {', '.join(family.presets)}")


def _configured(family: str, words: list[str], preset: str | None, config: Path | None) -> tuple[Family, RunConfig]:
    """The family, and its configuration: preset, then file, then overrides."""
    from sensorium import config as configuration
    from sensorium import families as package
    from sensorium.engine import settings
    from sensorium.errors import ConfigError

    chosen = package.load(family)
    if words and "=" not in words[0]:
        positional, *words = words
        if preset not in (None, positional):
            raise ConfigError(f"two presets: {positional!r} and --preset {preset}; give one of them")
        preset = positional
    layers: list[dict[str, Any]] = [configuration.load_file(config)] if config else []
    stated = next((layer["preset"] for layer in layers if "preset" in layer), None)
    name = preset or stated or next(iter(chosen.presets))
    layers.append(configuration.parse_overrides(words))
    return chosen, settings.resolve(chosen, name, *layers, origin=str(config or "configuration"))


def main() -> None:
    """Entry point of ``sensorium``: errors of ours are one line on standard error and an exit code."""
    sys.argv[1:] = launched.words(sys.argv[1:])
    shown(app)
