"""``sensorium demo``: train on small real data in minutes, beside a linear baseline, search, and write a report."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from sensorium import config as configuration
from sensorium import families
from sensorium.engine import loop, rundir, settings
from sensorium.engine.contract import Evaluation, Table
from sensorium.engine.report import write_report
from sensorium.engine.results import FOLDER
from sensorium.engine.tables import print_evaluation, print_table
from sensorium.errors import ConfigError, printable
from sensorium.files import copy_file
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
STAGES = {"data": "read and encode"}
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
    layers = [{"seed": seed, "data": data_settings(data, languages)}, configuration.parse_overrides(overrides)]
    full, probe = (settings.resolve(family, preset, *layers) for preset in ("small", "probe"))
    aside = rundir.set_aside(run)
    if aside is not None:
        typer.echo(f"An earlier run was kept as {aside}")
    if data == "stamps":
        typer.echo("Tux Paint stamps: 161 MB are fetched once where the package is not installed")
    results = {"thinking": _tested(loop.train(family, full, run), run)}
    begun = time.monotonic()
    heads = run / "linear_heads"
    results["linear heads"] = _tested(loop.train(family, probe, heads, quiet=True), heads)
    copy_file(heads / FOLDER / "test.json", run / FOLDER / "linear_heads.json")
    seconds = {**rundir.read_json(run / "summary.json")["seconds"], "linear heads": time.monotonic() - begun}
    print_evaluation(results["thinking"])
    print_table(_comparison(results))
    begun = time.monotonic()
    _search(run, QUERIES[data])
    seconds["index and search"] = time.monotonic() - begun
    report = write_report(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    spent = ", ".join(f"{STAGES.get(name, name)} {value:.1f} s" for name, value in seconds.items())
    typer.echo(f"Time: {spent}; together {sum(seconds.values()):.0f} s. Peak memory: {peak:.2f} GB")
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
        "options": {"art": ["twemoji", "openmoji"], "speech": True},
    }


def _tested(result: Evaluation | None, run: Path) -> Evaluation:
    if result is None:
        raise ConfigError(f"{run}: was not evaluated on the test split; leave evaluate.test on")
    return result


def _comparison(results: Mapping[str, Evaluation]) -> Table:
    """The models and chance: R@10 of each direction, and R-Sum."""
    chance = next(iter(results.values())).metrics
    names = [name for name in chance if name.endswith("/R@10") and not name.startswith("chance/")]
    rows: list[tuple[str | float, ...]] = [
        (model, *(result.metrics[name] for name in names), result.metrics["r_sum"]) for model, result in results.items()
    ]
    rows.append(("chance", *(chance[f"chance/{name}"] for name in names), chance["chance/r_sum"]))
    columns = ("R@10", *(name.partition("/")[0] for name in names), "R-Sum")
    note = "On held-out concepts. t: text, i: picture, a: sound; t2i: a text finds its picture."
    return Table("Beside linear heads and chance", columns, tuple(rows), note)


def _search(run: Path, queries: Sequence[str]) -> None:
    """Search with words, and with the first recording of the index."""
    model = load(run)
    asked: list[tuple[str, dict[str, str]]] = [(repr(query), {"text": query}) for query in queries]
    spoken = next((item for item in model.index["items"] if item["audio"]), None)
    if spoken is not None:
        asked.append((f"the recording of {spoken['text']!r}", {"audio": spoken["audio"]}))
    for name, query in asked:
        hits = model.search(query, "image", 3)
        typer.echo(printable(f"{name} finds: " + ", ".join(f"{hit.text} ({hit.score:.2f})" for hit in hits)))
