"""Exports: what is read back equals the run bit for bit, ONNX gives what torch gives, damage is found."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from rows import FACTS, build, changed, make, moved
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import sensorium
from sensorium import cli, exported, families, use
from sensorium.data.items import MODALITIES, Modality
from sensorium.engine import loop, settings
from sensorium.engine.contract import Batch
from sensorium.errors import CheckpointError, ConfigError, RunError
from sensorium.families.thinking import export_onnx
from sensorium.families.thinking.data import collate
from sensorium.families.thinking.export_onnx import INPUTS, PACKAGES, Tower, tower_to_onnx

FAMILY = families.load("thinking")
FILES = {"README.md", "config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with every part that a model can have; few thoughts, as ONNX unrolls them."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    changes = {
        "model": {"think_steps": 1, "queue": 32, "floor": True},
        "data": {"cache": str(tmp_path_factory.mktemp("features"))},
        "train": {"steps": 8},
    }
    loop.train(FAMILY, settings.resolve(FAMILY, "tiny", changes), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def queries(run: Path) -> list[dict[str, str]]:
    item = sensorium.load(run).index["items"][3]
    return [{m: item[m]} for m in MODALITIES] + [{"text": "a small blue ring", "audio": item["audio"]}]


@pytest.fixture
def export(run: Path, tmp_path: Path) -> Path:
    return use.export(run, "hf", out=tmp_path / "export")[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- format hf


def test_what_is_read_back_equals_the_run_bit_for_bit(run: Path, export: Path, queries: list[dict[str, str]]) -> None:
    assert {path.name for path in export.iterdir()} == FILES
    trained, carried = sensorium.load(run), sensorium.load(export)
    for query in queries:
        assert np.array_equal(trained.encode(query), carried.encode(query))
    weights = load_file(export / "model.safetensors")
    weights["model.read_out.out.bias"][0] += 0.1
    save_file(weights, export / "model.safetensors")
    rewrite(export, digest=exported.checkpoint.digest_of(weights))
    other = sensorium.load(export)  # the twin: another weight is another embedding
    assert not any(np.allclose(trained.encode(query), other.encode(query), atol=1e-5) for query in queries)


def rewrite(folder: Path, **changes: object) -> None:
    """Change values of ``config.json`` with a right checksum."""
    exported.write_config(folder, {**exported.read_config(folder), **changes})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_flipped_byte_is_found(name: str, export: Path) -> None:
    whole = (export / name).read_bytes()
    found = 0
    for place in np.linspace(0, len(whole) - 1, 40).astype(int):
        if chr(whole[place]).isspace():
            continue  # in JSON and in the header of safetensors they mean nothing
        (export / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError) as caught:
            sensorium.load(export)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        found += 1
    assert found > 20
    (export / name).write_bytes(whole)
    sensorium.load(export)


def test_what_is_no_export_of_ours_is_refused(run: Path, export: Path, tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            sensorium.load(export)

    whole = (export / "config.json").read_bytes()
    rewrite(export, facts=[], seed=None)
    refused(r"config\.json: is no description of an export; missing or of another kind: facts, seed")
    (export / "config.json").write_text("[" * 100_000)
    refused(r"config\.json: cannot be read \(nested too deeply\)")
    (export / "config.json").write_bytes(whole)
    rewrite(export, format=2)
    refused(r"config\.json: format 2; this version reads format 1")
    (export / "config.json").write_text('{"model_type": "bert"}')
    refused("was not written by `sensorium export`")
    (export / "config.json").write_text("[]")
    refused("was not written by `sensorium export`")
    (export / "config.json").write_text("{")
    refused("cannot be read")
    (export / "config.json").unlink()
    refused("not a run folder")
    again = use.export(run, "hf", out=tmp_path / "again")[0]
    (again / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        sensorium.load(again)
    with pytest.raises(ConfigError, match="one set of weights; leave the checkpoint 'latest' out"):
        sensorium.load(again, "latest")


def test_other_encoders_are_refused_and_the_right_one_is_found_elsewhere(export: Path) -> None:
    name = "random:text?width=32&layers=1&seed="
    with pytest.raises(CheckpointError, match=r"text encoder .*seed=1' is not the one of the training.*weights"):
        sensorium.load(export, data={"text_encoder": name + "1"}).encode({"text": "a dog"})
    with pytest.raises(CheckpointError, match=r"not the same: prefix\)"):
        sensorium.load(export, data={"text_prefix": "query: "}).encode({"text": "a dog"})
    with pytest.raises(ConfigError, match=r"data\.text_encodr: unknown key; did you mean 'text_encoder'"):
        sensorium.load(export, data={"text_encodr": name})
    moved_there = sensorium.load(export, data={"text_encoder": "random:text?layers=1&width=32"})
    assert np.array_equal(moved_there.encode({"text": "a dog"}), sensorium.load(export).encode({"text": "a dog"}))


def test_an_export_knows_nothing_of_where_the_data_lay(run: Path, export: Path) -> None:
    text = "".join((export / name).read_text() for name in ("config.json", "README.md"))
    stored = (run / "config.yaml").read_text()
    cache = re.search(r"cache: (\S+)", stored)
    assert cache is not None
    assert cache[1] not in text
    assert str(run.parent) not in text
    assert not [name for name in load_file(export / "model.safetensors") if name.startswith("queue")]
    with pytest.raises(ConfigError, match="holds no data to search in"):
        sensorium.load(export).search({"text": "a red circle"})


def test_the_card_tells_what_it_is(run: Path, export: Path) -> None:
    card = (export / "README.md").read_text()
    config = exported.read_config(export)
    metrics = json.loads((run / "evaluation/test.json").read_text())["metrics"]
    assert f"| t2i/R@1 | {metrics['t2i/R@1']:.2f} | {metrics['chance/t2i/R@1']:.2f} |" in card
    for identity in config["facts"]["encoders"].values():
        assert identity["weights"] in card
    assert "Licence of the training data (`synthetic`): MIT" in card
    assert "sensorium.load(FOLDER)" in card
    parameters = sum(parameter.numel() for parameter in sensorium.load(export).task.parameters())
    assert f"{parameters:,} parameters" in card


def test_results_of_another_checkpoint_are_not_claimed(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "evaluation/test.json"
    path.write_text(path.read_text().replace("step_00000008", "step_00000007"))
    card = (use.export(copy, "hf")[0] / "README.md").read_text()
    assert "This checkpoint was not evaluated" in card
    assert "R@1" not in card


# --- format onnx


@pytest.fixture(scope="module")
def onnx(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return use.export(run, "onnx", out=tmp_path_factory.mktemp("exports") / "onnx")[0]


def features(rows: int, length: int, width: int, pooled_width: int) -> dict[str, np.ndarray]:
    """Features of rows that have from one to all tokens."""
    rng = np.random.default_rng(rows * 100 + length)
    mask = np.arange(length) < rng.integers(1, length + 1, (rows, 1))
    tokens = rng.normal(size=(rows, length, width)).astype(np.float32)
    pooled = rng.normal(size=(rows, pooled_width)).astype(np.float32)
    return {"tokens": tokens * mask[..., None], "mask": mask, "pooled": pooled}


def as_batch(modality: Modality, given: dict[str, np.ndarray]) -> Batch:
    rows = len(given["mask"])
    has = torch.tensor([[m == modality for m in MODALITIES]] * rows)
    return {"has": has, **{f"{modality}_{name}": torch.from_numpy(array) for name, array in given.items()}}


@pytest.mark.parametrize("modality", MODALITIES)
def test_onnx_gives_what_the_task_gives(modality: Modality, run: Path, onnx: Path) -> None:
    """Against ``ThinkingTask.embed`` itself, for rows and lengths that the export did not try."""
    task = sensorium.load(run).task
    fact = task.facts[modality]
    session = onnxruntime.InferenceSession(onnx / f"{modality}.onnx")
    for rows, length in ((1, 1), (1, 9), (5, 3), (33, 40)):
        given = features(rows, length, fact.width, fact.pooled_width)
        [embedding] = session.run(None, given)
        with torch.inference_mode():
            expected = task.embed(as_batch(modality, given))[modality].numpy()
        np.testing.assert_allclose(embedding, expected, rtol=0, atol=1e-5)  # float32 sums in another order
        padded = {**given, "mask": np.pad(given["mask"], ((0, 0), (0, 6)))}
        padded["tokens"] = np.pad(given["tokens"], ((0, 0), (0, 6), (0, 0)), constant_values=3.0)
        np.testing.assert_allclose(session.run(None, padded)[0], embedding, rtol=0, atol=1e-5)
        seen = {**padded, "mask": np.ones_like(padded["mask"])}  # the twin: padding that is seen
        assert np.abs(session.run(None, seen)[0] - embedding).max() > 1e-3


def test_the_files_say_what_they_are(onnx: Path) -> None:
    config = exported.read_config(onnx)
    assert {path.name for path in onnx.iterdir()} == {"README.md", "config.json", *config["files"]}
    for name, record in config["files"].items():
        inputs = onnxruntime.InferenceSession(onnx / name).get_inputs()
        assert {one.name: one.shape for one in inputs} == record["inputs"]
        assert record["max_abs_difference"] < 1e-5
        assert b"site-packages" not in (onnx / name).read_bytes()
        assert str(Path(sensorium.__file__).parent).encode() not in (onnx / name).read_bytes()
    with pytest.raises(CheckpointError, match="an export of format 'onnx'"):
        sensorium.load(onnx)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_probe_is_exported_too(modality: Modality, tmp_path: Path) -> None:
    task = moved(build(changed(kind="probe"))).eval()
    path = tmp_path / "probe.onnx"
    assert tower_to_onnx(Tower(task, modality), FACTS[modality], path) < 1e-5
    batch = make(3)
    given = {name: batch[f"{modality}_{name}"].numpy() for name in INPUTS}
    with torch.inference_mode():
        expected = task.embed(batch)[modality].numpy()
    found = onnxruntime.InferenceSession(path).run(None, given)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    nothing = {**given, "mask": np.zeros_like(given["mask"])}
    assert not onnxruntime.InferenceSession(path).run(None, nothing)[0].any()


def test_a_file_that_differs_from_torch_is_not_written(
    run: Path, onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter that gives the tower of pictures for that of texts: found, and the folder does not appear."""

    class Mistaken:
        def save(self, path: Path, *, include_initializers: bool, external_data: bool) -> None:
            shutil.copyfile(onnx / "image.onnx", path)

    monkeypatch.setattr(export_onnx, "_convert", lambda tower, fact: Mistaken())
    out = tmp_path / "models/onnx"
    with pytest.raises(RunError, match=r"text\.onnx differs from torch by .*\(allowed 1e-04\); nothing was written"):
        use.export(run, "onnx", out=out)
    assert not out.parent.exists()


def test_without_its_packages_onnx_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in PACKAGES else find(name))
    with pytest.raises(ConfigError, match=r"needs onnx, onnxscript, onnxruntime; run: pip install 'sensorium\[onnx\]'"):
        use.export(run, "onnx", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the verb


def test_the_verb_writes_a_folder_once(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    done = CliRunner().invoke(cli.app, ["export", str(copy)])
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{copy / 'export/hf'}: ")
    before = contents(copy / "export/hf")
    again = CliRunner().invoke(cli.app, ["export", str(copy), "--format", "hf"])
    assert isinstance(again.exception, ConfigError)
    assert "exists and is not an empty folder; --out takes another one" in str(again.exception)
    assert contents(copy / "export/hf") == before
    assert [path.name for path in (copy / "export").iterdir()] == ["hf"]


def test_bad_input_is_one_line_and_writes_nothing(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="has no export format 'gguf'; it has: hf, onnx"):
        use.export(run, "gguf", out=out)
    with pytest.raises(CheckpointError, match="no checkpoint 'step_9'; there are: best, latest, step_00000008"):
        use.export(run, "hf", "step_9", out)
    with pytest.raises(CheckpointError, match="nowhere: not a run folder"):
        use.export(tmp_path / "nowhere", "hf", out=out)
    shutil.copytree(run, tmp_path / "new")
    shutil.rmtree(tmp_path / "new/checkpoints")
    with pytest.raises(CheckpointError, match="holds no complete checkpoint yet"):
        use.export(tmp_path / "new", "hf", out=out)
    assert not out.exists()
    out.write_text("a file")
    with pytest.raises(ConfigError, match="out: exists and is not an empty folder"):
        use.export(run, "hf", out=out)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert use.export(run, "hf", "latest", empty)[0] == empty
    assert set(contents(empty)) == FILES


def test_an_export_is_exported_again(export: Path, tmp_path: Path) -> None:
    again = use.export(export, "hf", out=tmp_path / "again")[0]
    assert (again / "model.safetensors").read_bytes() == (export / "model.safetensors").read_bytes()
    assert "Exported from an export" in (again / "README.md").read_text()


# --- search with the match head


def test_the_match_head_orders_the_best_anew(run: Path) -> None:
    model = sensorium.load(run)
    plain = model.search({"text": "a red circle"}, "image", 12)
    matched = model.search({"text": "a red circle"}, "image", 12, rerank=12)
    assert {hit.id for hit in matched} == {hit.id for hit in plain}
    assert [hit.id for hit in matched] != [hit.id for hit in plain]
    assert [hit.score for hit in matched] == sorted((hit.score for hit in matched), reverse=True)
    assert model.search({"text": "a red circle"}, "image", 3, rerank=12) == matched[:3]
    alone = model.search({"text": "a red circle"}, "image", 1, rerank=1)
    assert alone[0].id == plain[0].id  # nothing else was looked at


def test_a_match_score_is_that_of_the_pair(run: Path) -> None:
    model = sensorium.load(run)
    [best] = model.search({"text": "a red circle"}, "image", 1, rerank=8)
    assert best.image is not None
    text, image = (model._features(m, [value])[0] for m, value in (("text", "a red circle"), ("image", best.image)))
    batch = collate([{"group": 0, "text": text, "image": image}], model.encoders)
    with torch.inference_mode():
        assert best.score == pytest.approx(model.task.match_score(batch).item(), abs=1e-5)


def test_re_ranking_that_cannot_be_is_one_line(run: Path) -> None:
    model = sensorium.load(run)
    with pytest.raises(ConfigError, match="re-ranking compares two modalities; search text with another"):
        model.search({"text": "a red circle"}, "text", rerank=5)
    model.task.match = None
    with pytest.raises(ConfigError, match=r"no match head to re-rank with; train with model\.weights\.match above 0"):
        model.search({"text": "a red circle"}, rerank=5)
