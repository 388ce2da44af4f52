"""From data to search: caching, evaluation in all directions, the index, the command line."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import Bomb
from typer.testing import CliRunner

import sensorium
from sensorium import cli_data, families, proof
from sensorium.data import features
from sensorium.engine import loop, settings
from sensorium.engine.contract import Host, Sources
from sensorium.errors import CheckpointError, ConfigError, DataError
from sensorium.families.thinking.data import FeatureSource, sources
from sensorium.families.thinking.evaluator import RetrievalEvaluator
from sensorium.families.thinking.task import ThinkingTask

FAMILY = families.load("thinking")


def config(changes: dict[str, Any] | None = None) -> settings.RunConfig:
    return settings.resolve(FAMILY, "tiny", changes or {})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    cache = str(tmp_path_factory.mktemp("features"))
    loop.train(FAMILY, config({"data": {"cache": cache}, "train": {"steps": 150}}), folder, quiet=True)
    return folder


def blank(source: FeatureSource) -> ThinkingTask:
    """An untrained model for the data of ``source``."""
    task = FAMILY.task(config(), FAMILY.facts(config(), Sources(source)))
    assert isinstance(task, ThinkingTask)
    return task.eval()


def test_a_run_beats_chance_in_every_direction(run: Path) -> None:
    result = json.loads((run / "evaluation/test.json").read_text())
    names = [name for name in result["metrics"] if name.endswith("R@10") and not name.startswith("chance/")]
    assert len(names) == 6
    assert result["metrics"]["r_sum"] > 1.5 * result["metrics"]["chance/r_sum"]
    assert not result["warnings"]
    titles = [table["title"] for table in result["tables"]]
    assert titles == [
        "Retrieval",
        "More or less thinking",
        "One query, several senses: finding pictures",
        "Only the row's own counterpart is right",
        "Re-ranked by the match head",
        "Zero-shot classification",
    ]


def test_three_lines_of_python(run: Path) -> None:
    model = sensorium.load(run)
    vector = model.encode({"text": "a red circle"})
    hits = model.search({"text": "a red circle"}, among="image", k=5)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert len(hits) == 5
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(Path(hit.image).is_file() for hit in hits)


def test_a_picture_finds_itself_and_joint_queries_differ(run: Path) -> None:
    model = sensorium.load(run)
    item = model.index["items"][3]
    assert model.search({"image": item["image"]}, "image", 1)[0].image == item["image"]
    joint = model.encode({"image": item["image"], "audio": item["audio"]})
    assert not np.allclose(joint, model.encode({"image": item["image"]}), atol=1e-4)


def test_an_index_of_other_weights_is_refused(run: Path) -> None:
    model = sensorium.load(run)
    path = run / "index" / model.loaded.digest[:16] / "index.json"
    assert model.index
    data = path.read_bytes()
    path.write_bytes(proof.seal({**proof.unseal(data, 1), "digest": "0" * 64}))
    with pytest.raises(CheckpointError, match="index of other weights"):
        assert sensorium.load(run).index
    path.write_bytes(data)


def test_a_hostile_index_is_refused_and_nothing_in_it_is_run(run: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def search() -> Any:
        return sensorium.load(run).search({"text": "x"}, "image")

    assert search()
    folder = run / "index" / sensorium.load(run).loaded.digest[:16]
    matrix, table = folder / "image.npy", folder / "index.json"
    right = matrix.read_bytes(), table.read_bytes()
    rows = np.load(matrix)
    for content in (np.array([Bomb(marker)]), rows[:-1], rows[:, :-1], rows.astype(np.float64)):
        np.save(matrix, content)
        with pytest.raises(CheckpointError, match=r"image\.npy: damaged .*; delete .* to build the index anew"):
            search()
    for data in (b"", pickle.dumps(Bomb(marker)), right[0][:200]):
        matrix.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"image\.npy: damaged"):
            search()
    np.savez(folder / "image", rows=rows)
    (folder / "image.npz").rename(matrix)
    with pytest.raises(CheckpointError, match=r"image\.npy: damaged"):
        search()
    matrix.write_bytes(right[0])
    for text in ("", "[]", "{}", '{"a":' * 100_000, right[1].decode().replace('"rows": {', '"rows": {"x": [999999], ')):
        table.write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json: damaged"):
            search()
    table.write_bytes(right[1])
    assert search()
    assert not marker.exists()
    np.save(tmp_path / "bomb.npy", np.array([Bomb(marker)]))
    np.load(tmp_path / "bomb.npy", allow_pickle=True)
    assert marker.exists()  # the twin: whoever allows pickles runs it


@pytest.mark.parametrize("name", ["index.json", "image.npy"])
def test_a_damaged_index_is_refused_by_the_search(run: Path, name: str) -> None:
    model = sensorium.load(run)
    before = model.search({"text": "a red circle"}, "image", 3)
    path = run / "index" / model.loaded.digest[:16] / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=rf"{name}: damaged \(.*delete .* to build"):
        sensorium.load(run).search({"text": "a red circle"}, "image", 3)
    shutil.rmtree(path.parent)
    again = sensorium.load(run).search({"text": "a red circle"}, "image", 3)  # built anew
    assert [(hit.id, hit.score) for hit in again] == [(hit.id, hit.score) for hit in before]


def test_bad_queries_are_one_line(run: Path) -> None:
    model = sensorium.load(run)
    with pytest.raises(ConfigError, match="cannot ask with video; this run knows text, image, audio"):
        model.encode({"video": "x"})
    with pytest.raises(ConfigError, match="cannot search among video"):
        model.search({"text": "x"}, among="video")
    with pytest.raises(DataError, match=r"nowhere\.png"):
        model.encode({"image": "nowhere.png"})


def test_search_on_the_command_line(run: Path) -> None:
    command = [sys.executable, "-c", "from sensorium.cli import main; main()", "search", str(run)]
    found = subprocess.run(
        [*command, "a red circle", "--json", "--top", "2"], capture_output=True, text=True, check=True
    )
    assert len(json.loads(found.stdout)) == 2
    failed = subprocess.run([*command], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: nothing to look for; give words, --image FILE, --audio")


def test_the_second_start_encodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config({"data": {"cache": str(tmp_path / "cache")}})
    first = sources(chosen, Host())

    def never(*_: object) -> None:
        raise AssertionError("an encoder ran although everything is cached")

    monkeypatch.setattr(features, "fill", never)
    again = sources(chosen, Host())
    assert first.train.fingerprint == again.train.fingerprint
    with pytest.raises(AssertionError, match="an encoder ran"):  # the twin: another window is another entry
        sources(config({"data": {"cache": str(tmp_path / "cache"), "audio_pool": 2}}), Host())


def test_a_changed_encoder_changes_the_fingerprint(tmp_path: Path) -> None:
    cache = {"cache": str(tmp_path / "cache")}
    first = sources(config({"data": cache}), Host())
    other = sources(config({"data": {**cache, "text_encoder": "random:text?width=32&layers=1&seed=1"}}), Host())
    assert first.train.fingerprint != other.train.fingerprint


def test_cached_training_equals_live_training(tmp_path: Path) -> None:
    """A float32 cache holds what the encoder gave: equal losses to the bit."""
    losses = {}
    for name, data in (("cached", {"cache_dtype": "float32"}), ("live", {"use_cache": False})):
        chosen = config({"data": data, "train": {"steps": 3}, "evaluate": {"every_epochs": None, "test": False}})
        loop.train(FAMILY, chosen, tmp_path / name, quiet=True)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
    assert losses["cached"] == losses["live"]


def test_a_run_without_sound_masks_it(tmp_path: Path) -> None:
    chosen = config({"data": {"audio_encoder": None}, "train": {"steps": 3}})
    result = loop.train(FAMILY, chosen, tmp_path / "run", quiet=True)
    assert result is not None
    assert {name.partition("/")[0] for name in result.metrics} == {"loss", "r_sum", "chance", "t2i", "i2t"}
    with pytest.raises(DataError, match="retrieval needs at least two"):
        sources(config({"data": {"audio_encoder": None, "text_encoder": None}}), Host())


def test_a_split_with_gaps_is_evaluated_over_what_it_has(tmp_path: Path) -> None:
    """Queries without a right item in the gallery are left out and the count says so; without a pair it is an error."""
    from dataclasses import replace

    found = sources(config({"data": {"cache": str(tmp_path / "cache")}}), Host()).test
    assert isinstance(found, FeatureSource)
    numbers = {item.group: number for number, item in enumerate(found.items)}
    silent = [replace(item, audio=None) if item.group == found.items[0].group else item for item in found.items]
    gaps = FeatureSource(silent, found.senses, numbers)
    unit = torch.nn.functional.normalize(torch.randn(len(gaps), 32), dim=1)
    collected = {"loss": torch.zeros(len(gaps)), **dict.fromkeys(("text", "image", "audio"), unit)}
    table = RetrievalEvaluator(config()).score(collected, gaps, blank(gaps), final=True).tables[0]
    queries = {(row[0], row[1]): row[-2] for row in table.rows}
    assert queries["text", "sound"] < queries["text", "picture"]
    alone = FeatureSource([replace(item, image=None, audio=None) for item in found.items], found.senses, numbers)
    with pytest.raises(DataError, match="no group has items of two modalities"):
        RetrievalEvaluator(config()).score(collected, alone, blank(alone), final=True)


def test_a_split_in_which_nothing_is_both_written_and_spoken_is_evaluated(tmp_path: Path) -> None:
    from dataclasses import replace

    found = sources(config({"data": {"cache": str(tmp_path / "cache")}}), Host()).test
    assert isinstance(found, FeatureSource)
    numbers = {item.group: number for number, item in enumerate(found.items)}
    titles = {}
    for mixed in (False, True):
        items = [replace(x, **{("text", "audio")[i % 2]: None}) if mixed else x for i, x in enumerate(found.items)]
        split = FeatureSource(items, found.senses, numbers)
        rows = range(len(split))
        batch = split.collate([split.example(row, 0) for row in rows]) | {"index": torch.tensor(rows)}
        evaluator, task = RetrievalEvaluator(config()), blank(found)
        with torch.no_grad():
            collected = evaluator.collect(task, batch, final=True)
            result = evaluator.score(collected, split, task, final=True)
        titles[mixed] = [table.title for table in result.tables]
    senses = "One query, several senses: finding pictures"
    assert titles[True] == [title for title in titles[False] if title != senses] != titles[False]


def test_the_evaluation_of_another_split_does_not_speak_of_test(run: Path) -> None:
    from sensorium.engine.evaluate import evaluate_run

    result = evaluate_run(FAMILY, run, "val", "best", quiet=True)
    said = " ".join([*(f"{table.title} {table.note}" for table in result.tables), *result.warnings])
    assert "Retrieval" in said
    assert "test" not in said


def test_distinct_rows_are_the_gallery(tmp_path: Path) -> None:
    found = sources(config({"data": {"cache": str(tmp_path / "cache")}}), Host()).train
    assert isinstance(found, FeatureSource)
    for modality in found.senses:
        rows = found.distinct(modality)
        keys = [(found.items[row].group, found.keys[modality][row]) for row in rows]
        assert len(set(keys)) == len(keys)
        everything = {(item.group, key) for item, key in zip(found.items, found.keys[modality], strict=True) if key}
        assert set(keys) == everything


def test_a_collapsed_model_scores_nothing(tmp_path: Path) -> None:
    found = sources(config({"data": {"cache": str(tmp_path / "cache")}}), Host()).test
    assert isinstance(found, FeatureSource)
    same = torch.nn.functional.normalize(torch.ones(len(found), 32), dim=1)
    collected = {"loss": torch.zeros(len(found)), **dict.fromkeys(("text", "image", "audio"), same)}
    result = RetrievalEvaluator(config()).score(collected, found, blank(found), final=True)
    assert result.metrics["r_sum"] == 0
    assert "has not learned" in result.warnings[0]


def test_without_pictures_words_find_sounds(tmp_path: Path) -> None:
    chosen = config({"data": {"image_encoder": None, "cache": str(tmp_path / "cache")}, "train": {"steps": 3}})
    loop.train(FAMILY, chosen, tmp_path / "run", quiet=True)
    hits = sensorium.load(tmp_path / "run").search({"text": "a red circle"}, k=2)
    assert all(Path(hit.audio).is_file() for hit in hits)


def test_a_cache_namespace_is_cleared_by_the_name_that_info_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))
    sources(config(), Host())
    runner = CliRunner()
    shown = runner.invoke(cli_data.app, ["cache", "info"]).stdout.splitlines()[1:]
    assert len(shown) == 3
    name = shown[0].split()[0]
    cleared = runner.invoke(cli_data.app, ["cache", "clear", name, "--yes"])
    assert cleared.exit_code == 0
    left = [line.split()[0] for line in runner.invoke(cli_data.app, ["cache", "info"]).stdout.splitlines()[1:]]
    assert left == [line.split()[0] for line in shown[1:]]
    assert isinstance(runner.invoke(cli_data.app, ["cache", "clear", name[:12], "--yes"]).exception, DataError)


def test_the_start_says_what_is_not_built(tmp_path: Path) -> None:
    said: list[str] = []
    for weights in ({"align": 1.0, "recon": 0.0, "match": 0.0}, {"align": 1.0, "recon": 0.2, "match": 0.2}):
        changes = {"data": {"cache": str(tmp_path / "cache")}, "model": {"weights": weights}}
        sources(config(changes), Host(say=said.append))
    assert [line for line in said if "Not built" in line] == [
        "Not built, as the weight is 0: reconstruction, match head"
    ]
