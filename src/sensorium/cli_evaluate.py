"""The verb that judges. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sensorium.errors import printable

if TYPE_CHECKING:
    from sensorium.engine.settings import RunConfig

EXAMPLE = "Example: sensorium evaluate runs/first --split test --checkpoint best"


Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; with --data also an exported adapter.")]
RequireUse = Annotated[
    bool,
    typer.Option(
        "--require-use", "--require-climate-use", help="Exit code 1 where controls do as well (climate_text, pmg)."
    ),
]
Samples = Annotated[Path | None, typer.Option(help="Processed samples (JSON): pictures for each, drawn and judged.")]
Out = Annotated[Path | None, typer.Option(help="With --data: folder of the pictures and of evaluation.json.")]
Rows = Annotated[
    str | None,
    typer.Option(
        help="none, keywords, soft, pmg, textual_inversion, ip_adapter, other_user, copy_history, oracle_target."
    ),
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Judge the samples of which no picture is missing, in every row.")
]
# Where an option stands among the settings of a comparison; the others stand on top.
_SECTIONS = {
    **dict.fromkeys(("images", "steps", "guidance", "scheduler", "seed", "batch"), "draw"),
    **dict.fromkeys(("keywords", "preferences", "image_dir", "device"), "draw"),
    **dict.fromkeys(("clip", "weights_dir", "allow_missing"), "judge"),
    "ti_steps": "inversion",
}
_NAMES = {"compare": "rows", "ti_steps": "steps"}


def evaluate(
    run: Run,
    split: Annotated[str | None, typer.Option(help="train, val or test; default test.")] = None,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or the name of a checkpoint folder.")] = "best",
    require_use: RequireUse = False,
    data: Samples = None,
    out: Out = None,
    compare: Rows = None,
    images: Annotated[int | None, typer.Option(help="Pictures of each sample.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default 50, with dpmsolver 25.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, ddpm or dpmsolver.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the noise.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures made at a time.")] = None,
    keywords: Annotated[str | None, typer.Option(help="Words of the taste: auto, file, history or off.")] = None,
    preferences: Annotated[str | None, typer.Option(help="JSON with the style text of users.")] = None,
    image_dir: Annotated[str | None, typer.Option(help="Put before relative paths of pictures.")] = None,
    device: Annotated[str | None, typer.Option(help="With --data: cpu, cuda, cuda:1 or auto.")] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP of the metrics; default that of the run.")] = None,
    weights_dir: Annotated[str | None, typer.Option(help="Downloaded weights of LPIPS, Inception, aesthetics.")] = None,
    ip_adapter: Annotated[str | None, typer.Option(help="Folder with ip-adapter*.safetensors, image_encoder/.")] = None,
    ti_users: Annotated[int | None, typer.Option(help="So many users, in every row.")] = None,
    ti_steps: Annotated[int | None, typer.Option(help="Steps of textual inversion for a user.")] = None,
    allow_missing: AllowMissing = False,
) -> None:
    """Evaluate a checkpoint on a split; writes RUN/evaluation/<split>.json and the report anew. With --data: pictures
    of a pmg model beside those of other ways to make them, in one table."""
    from sensorium.errors import ConfigError

    rows = None if compare is None else compare.split(",")
    options = {"compare": rows, "images": images, "steps": steps, "guidance": guidance, "scheduler": scheduler}
    options |= {"seed": seed, "batch": batch, "keywords": keywords, "preferences": preferences, "clip": clip}
    options |= {"image_dir": image_dir, "device": device, "weights_dir": weights_dir, "ip_adapter": ip_adapter}
    options |= {"ti_users": ti_users, "ti_steps": ti_steps, "allow_missing": allow_missing or None}
    given = {name: value for name, value in options.items() if value is not None}
    if data is not None:
        if split is not None or require_use or out is None:
            raise ConfigError("with --data give --out FOLDER, and neither --split nor --require-use")
        _compare(run, checkpoint, (data, out), given)
        return
    if given or out is not None:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in (*given, *(["out"] if out else [])))
        raise ConfigError(f"{names}: only with --data FILE, the samples to draw and judge")
    _evaluate_split(run, split or "test", checkpoint, require_use)


def _compare(run: Path, checkpoint: str, places: tuple[Path, Path], given: dict[str, Any]) -> None:
    from sensorium import use
    from sensorium.engine.tables import print_evaluation

    how: dict[str, Any] = {}
    for name, value in given.items():
        section = _SECTIONS.get(name)
        (how if section is None else how.setdefault(section, {}))[_NAMES.get(name, name)] = value
    data, out = places
    host = use.host(lambda line: typer.echo(printable(line)))
    print_evaluation(use.comparer(run, checkpoint).compare_file(data, out, how, host))
    typer.echo(f"Results: {out / 'evaluation.json'}")


def _evaluate_split(run: Path, split: str, checkpoint: str, require_use: bool) -> None:
    from sensorium.engine import launch, session
    from sensorium.engine.evaluate import evaluate_run
    from sensorium.engine.report import write_report
    from sensorium.engine.tables import print_evaluation
    from sensorium.errors import ConfigError, RunError
    from sensorium.use import family_of

    chosen = family_of(run)
    if require_use and chosen.proof is None:
        raise ConfigError(f"{run}: --require-use needs an evaluation with controls; family {chosen.name!r} has none")
    spread(session.read_config(chosen, run), training=False)
    result = evaluate_run(chosen, run, split, checkpoint)
    if launch.is_main():
        print_evaluation(result)
        typer.echo(f"Report: {write_report(run)}")
        if require_use and chosen.proof is not None and not result.metrics[chosen.proof]:
            raise RunError(f"{run}: {chosen.proof} is 0, and --require-use asks for 1: {'; '.join(result.warnings)}")


def spread(config: RunConfig, *, training: bool = True) -> None:
    """Leave with the exit code of the processes that did the work, where that takes several."""
    from sensorium.engine import launch

    code = launch.spread(config.train, training=training)
    if code is not None:
        raise typer.Exit(code)
