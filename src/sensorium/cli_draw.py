"""The verb that draws pictures. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sensorium.errors import printable

EXAMPLE = 'Example: sensorium generate runs/pmg --user 7 --target "a teapot" --out pictures --images 4'


def generate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or an exported adapter.")],
    out: Annotated[Path, typer.Option(help="Folder of the pictures; what is complete there is not made again.")],
    data: Annotated[Path | None, typer.Option(help="Processed samples (JSON): pictures for each of them.")] = None,
    user: Annotated[str | None, typer.Option(help="Instead of --data: a user of the run's data.")] = None,
    target: Annotated[str | None, typer.Option(help="With --user: what to draw.")] = None,
    images: Annotated[int | None, typer.Option(help="Pictures of each sample.")] = None,
    mode: Annotated[str | None, typer.Option(help="Conditioning; default that of training.")] = None,
    negative: Annotated[str | None, typer.Option(help="What pictures shall not be.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default 50, with dpmsolver 25.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, ddpm or dpmsolver.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the noise.")] = None,
    seed_rule: Annotated[str | None, typer.Option(help="identity, or shared: seed + number for all.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures made at a time.")] = None,
    image_dir: Annotated[str | None, typer.Option(help="With --data: put before relative paths of pictures.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = None,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or the name of a checkpoint folder.")] = "best",
) -> None:
    """Draw pictures for users' tastes with a trained pmg model."""
    from sensorium import use
    from sensorium.errors import ConfigError

    if (data is None) == (user is None) or (user is None) != (target is None):
        raise ConfigError("give --data FILE, or --user and --target")
    given: dict[str, Any] = {"images": images, "mode": mode, "negative": negative, "steps": steps, "seed": seed}
    given |= {"guidance": guidance, "scheduler": scheduler, "seed_rule": seed_rule, "batch": batch, "device": device}
    how = {name: value for name, value in {**given, "image_dir": image_dir}.items() if value is not None}
    found, host = use.illustrator(run, checkpoint), use.host(lambda line: typer.echo(printable(line)))
    if data is not None:
        found.draw_file(data, out, how, host)
    else:
        found.draw_user(str(user), str(target), out, how, host)
