"""``sensorium demo``: train on small real data in minutes, beside a linear baseline, search, and write a report."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from sensorium import config as configuration
from sensorium import families
from sensorium.engine import loop, rundir, settings
from sensorium.engine.contract import Evaluation, Table
from sensorium.engine.report import write_report
from sensorium.engine.results import FOLDER
from sensorium.engine.tables import as_rich, print_evaluation
from sensorium.errors import ConfigError
from sensorium.use import load

PACKAGED = {
    "text_encoder": "package:minilm",
    "image_encoder": "package:efficientnet-lite0",
    "audio_encoder": "package:whisper-tiny.en",
}
RANDOM = {
    "text_encoder": "random:text?width=64&layers=2&seed=0",
    "image_encoder": "random:vision?width=64&layers=2&seed=0",
    "audio_encoder": "random:audio?width=64&layers=2&seed=0",
}
QUERIES = {
    "emoji": ("a slice of pizza", "someone is happy", "a flying animal", "weather"),
    "stamps": ("a barking dog", "something to eat", "a sailing boat", "a musical instrument"),
    "synthetic": ("a red circle", "a blue square", "a green triangle"),
}


def run_demo(data: str, languages: Sequence[str], run: Path, seed: int, overrides: Sequence[str]) -> None:
    """The whole demonstration; raises ConfigError or DataError with what to install."""
    if data not in QUERIES:
        raise ConfigError(f"--data {data}: there are {', '.join(QUERIES)}")
    family = families.load("thinking")
    seconds: dict[str, float] = {}
    layers = [{"seed": seed, "data": data_settings(data, languages)}, configuration.parse_overrides(overrides)]
    aside = rundir.set_aside(run)
    if aside is not None:
        typer.echo(f"An earlier run was kept as {aside}")
    results: dict[str, Evaluation] = {}
    with _timed(seconds, "encode, train and evaluate the model"):
        full = settings.resolve(family, "small", *layers)
        results["thinking"] = _test_of(loop.train(family, full, run), run)
    with _timed(seconds, "train and evaluate linear heads on the same features"):
        heads = run / "linear_heads"
        probe = settings.resolve(family, "probe", *layers)
        results["linear heads"] = _test_of(loop.train(family, probe, heads, quiet=True), heads)
        shutil.copyfile(heads / FOLDER / "test.json", run / FOLDER / "linear_heads.json")
    print_evaluation(results["thinking"])
    console_table(_comparison(results))
    with _timed(seconds, "index and search"):
        _search(run, QUERIES[data])
    report = write_report(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    for name, value in seconds.items():
        typer.echo(f"{value:7.1f} s  {name}")
    typer.echo(f"{peak:7.2f} GB peak memory")
    typer.echo(f'Search yourself: sensorium search {run} "{QUERIES[data][0]}"')
    typer.echo(f"Report: {report}")


def data_settings(data: str, languages: Sequence[str]) -> dict[str, Any]:
    """The ``data`` section of the demonstration's configuration."""
    if data == "synthetic":
        return {"reader": "synthetic", **RANDOM}
    if data == "stamps":
        return {"reader": "stamps", **PACKAGED, "audio_window_seconds": 4.0, "options": {"speech": list(languages)}}
    return {
        "reader": "emoji",
        **PACKAGED,
        "audio_window_seconds": 2.0,
        "options": {"art": ["twemoji"], "speech": True},
    }


def _test_of(result: Evaluation | None, run: Path) -> Evaluation:
    if result is None:
        raise ConfigError(f"{run}: was not evaluated; leave evaluate.test on")
    return result


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begun


def _comparison(results: Mapping[str, Evaluation]) -> Table:
    names = [name for name in next(iter(results.values())).metrics if name.endswith("/R@10")]
    names = [name for name in names if not name.startswith("chance/")]
    rows: list[tuple[str | float, ...]] = [
        (model, *(result.metrics[name] for name in names), result.metrics["r_sum"]) for model, result in results.items()
    ]
    chance = next(iter(results.values())).metrics
    rows.append(("chance", *(chance[f"chance/{name}"] for name in names), chance["chance/r_sum"]))
    note = "Held-out concepts: no picture, word or sound of theirs was trained on."
    return Table(
        "Beside linear heads and chance", ("model", *(n.replace("/", " ") for n in names), "R-Sum"), tuple(rows), note
    )


def console_table(table: Table) -> None:
    """Print one table."""
    from rich.console import Console

    Console(highlight=False).print(as_rich(table))


def _search(run: Path, queries: Sequence[str]) -> None:
    model = load(run)
    for query in queries:
        hits = model.search({"text": query}, "image", 3)
        typer.echo(f"{query!r} finds: " + ", ".join(f"{hit.text} ({hit.score:.2f})" for hit in hits))
