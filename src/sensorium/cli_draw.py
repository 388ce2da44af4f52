"""The verb that draws pictures. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sensorium.errors import printable

EXAMPLE = 'Example: sensorium generate runs/pmg --user 7 --target "a teapot" --out pictures --images 4'


def generate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, one of its checkpoints, or an adapter.")],
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
    select: Annotated[bool, typer.Option("--select", help="Let a CLIP choose the best picture: best.jpg.")] = False,
    clip: Annotated[str | None, typer.Option(help="With --select: a folder or hub name; default model.clip.")] = None,
    alpha: Annotated[float | None, typer.Option(help="With --select: share of the taste; default 2/3.")] = None,
    keywords: Annotated[str | None, typer.Option(help="Words of the taste: auto, history, file or off.")] = None,
    num_keywords: Annotated[int | None, typer.Option(help="Keywords to ask the language model for; 8.")] = None,
    preferences: Annotated[str | None, typer.Option(help="JSON with the style text of users.")] = None,
    target_text: Annotated[str | None, typer.Option(help="What is drawn: caption, or keywords made of it.")] = None,
    weighting: Annotated[str | None, typer.Option(help="scale or repeat: how a weight of the words works.")] = None,
    weights: Annotated[str | None, typer.Option(help="Weights of the words, such as 1,2: a candidate each.")] = None,
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
    given |= {"clip": clip, "alpha": alpha, "keywords": keywords, "num_keywords": num_keywords}
    given |= {"preferences": preferences, "weighting": weighting, "preference_weights": _numbers(weights)}
    given |= {"target_text": target_text}
    given |= {"guidance": guidance, "scheduler": scheduler, "seed_rule": seed_rule, "batch": batch, "device": device}
    how = {
        name: value
        for name, value in {**given, "image_dir": image_dir, "select": select or None}.items()
        if value is not None
    }
    found, host = use.illustrator(run, checkpoint), use.host(lambda line: typer.echo(printable(line)))
    if data is not None:
        found.draw_file(data, out, how, host)
    else:
        found.draw_user(str(user), str(target), out, how, host)


def _numbers(text: str | None) -> list[float] | None:
    """Raises ConfigError."""
    from sensorium.errors import ConfigError

    try:
        return None if text is None else [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--weights {text}: expected numbers between commas, such as 1,2") from None
