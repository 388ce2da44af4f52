"""A trained run in use: search, re-ranking, export, and the ``.pt`` file that opens without its run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import sensorium
from sensorium import families, use
from sensorium.engine import loop, settings
from sensorium.engine.contract import Host
from sensorium.errors import CheckpointError, ConfigError, DataError
from sensorium.families.interaction.data import EvalSource
from sensorium.families.interaction.model import InteractionModel
from sensorium.families.interaction.portable import portable_content
from sensorium.families.interaction.task import embed
from sensorium.families.interaction.use import Searcher, load_model

FAMILY = families.load("interaction")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    shapes = {"reader": "synthetic", "root": str(tmp_path_factory.mktemp("shapes"))}
    cache = str(tmp_path_factory.mktemp("features"))
    changes = {
        "data": {"sets": {"shapes": shapes}, "cache": cache, "validation_groups": 4},
        "train": {"steps": 60, "batch_size": 32},
        "optim": {"lr": 3e-3},
    }
    loop.train(FAMILY, settings.resolve(FAMILY, "tiny", changes), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Searcher:
    return sensorium.load(run)


@pytest.fixture(scope="module")
def file(model: Searcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the guide's script writes it."""
    path = tmp_path_factory.mktemp("files") / "best_model.pt"
    torch.save(content(model), path)
    return path


def content(model: Searcher) -> dict[str, Any]:
    return portable_content(model.loaded, stage="full", epoch=2.5, metrics={"r_sum": 120.0, "lost": float("nan")})


def items(model: Searcher, modality: str) -> list[dict[str, Any]]:
    return [model.index["items"][row] for row in model.index["rows"][modality]]


# --- search


def test_a_query_finds_what_the_towers_put_next_to_it(model: Searcher) -> None:
    query = {"text": "a small red circle"}
    for among in ("image", "audio", "text"):
        hits = model.search(query, among, k=7)
        scores = model._index.matrix(among) @ model.encode(query)
        best = np.argsort(-scores, kind="stable")[:7]
        assert [hit.score for hit in hits] == pytest.approx(scores[best].tolist())
        assert [hit.id for hit in hits] == [items(model, among)[i]["id"] for i in best]
        assert all(Path(str(hit.image or hit.audio)).is_file() for hit in hits if among != "text")
    assert {modality: len(rows) for modality, rows in model.index["rows"].items()} == {
        "text": 384,
        "image": 384,
        "audio": 384,
    }  # all of validation, too


def test_it_finds_what_it_was_trained_on(model: Searcher) -> None:
    """Most of what a trained sentence finds has its colour or shape or size; and things find themselves."""
    for modality in ("image", "audio", "text"):
        one = items(model, modality)[11]
        hit = model.search({modality: one[modality]}, modality, 1)[0]
        assert getattr(hit, modality) == one[modality]
        assert hit.score == pytest.approx(1.0, abs=1e-5)
    asked = [item["text"] for item in items(model, "text")[:60]]
    words = [set(text.replace(",", "").split()) - {"a", "one", "the", "is", "and"} for text in asked]
    shared = []
    for text, mine in zip(asked, words, strict=True):
        found = model.search({"text": text}, "image", 5)
        shared += [len(mine & set(str(hit.text).replace(",", "").split())) for hit in found]
    assert np.mean(shared) > 1.25  # of three; chance is 1/2 + 1/8 + 1/8


def test_what_is_asked_is_what_was_indexed(model: Searcher) -> None:
    """Files through the processor get the vectors that the cache's copies got."""
    for modality in ("image", "audio"):
        for row in (0, 100, 383):
            vector = model.encode({modality: items(model, modality)[row][modality]})
            np.testing.assert_allclose(vector, model._index.matrix(modality)[row], atol=1e-5)


def test_several_make_a_joint_query(model: Searcher) -> None:
    one = {"text": "a small red circle", "image": items(model, "image")[3]["image"]}
    joint = sum(model.encode({m: value}) for m, value in one.items())
    np.testing.assert_allclose(model.encode(one), joint / np.linalg.norm(joint), atol=1e-6)


def test_re_ranking_orders_the_best_by_the_match_head(model: Searcher) -> None:
    query = {"text": "a small red circle"}
    plain, again = model.search(query, "image", 20), model.search(query, "image", 5, rerank=20)
    inputs = model.processor(images=[str(hit.image) for hit in plain], texts=[query["text"]] * 20)
    with torch.no_grad():
        logits = model.task.model(**inputs)["match_logits"]
    order = torch.argsort(logits, descending=True)[:5].tolist()
    assert [hit.id for hit in again] == [plain[i].id for i in order]
    assert [hit.score for hit in again] == pytest.approx(logits[order].tolist(), abs=1e-4)
    assert [hit.id for hit in again] != [hit.id for hit in plain[:5]]


def test_what_cannot_be_done_is_said_in_a_line(model: Searcher) -> None:
    for match, query, among, rerank in (
        ("cannot ask with smell; this run knows text, image, audio", {"smell": "x"}, None, 0),
        ("an empty query", {}, None, 0),
        ("cannot search among smell", {"text": "x"}, "smell", 0),
        ("re-ranking compares two modalities", {"text": "x"}, "text", 20),
    ):
        with pytest.raises(ConfigError, match=match):
            model.search(query, among, 5, rerank)
    untrained = Searcher(model.loaded)
    weights = model.task.config.weights.model_copy(update={"match": 0.0})
    untrained.task = type(model.task)(model.task.config.model_copy(update={"weights": weights}), model.loaded.facts, 1)
    with pytest.raises(ConfigError, match="no trained match head"):
        untrained.search({"text": "x"}, "image", 5, 20)


# --- a file of its own


def test_the_file_gives_back_the_model_and_what_feeds_it(model: Searcher, file: Path) -> None:
    found, processor = load_model(file)
    assert not found.training
    for name, tensor in model.task.model.state_dict().items():
        assert found.state_dict()[name].equal(tensor)
    picture, sound = items(model, "image")[0]["image"], items(model, "audio")[0]["audio"]
    inputs = processor(images=[picture], texts=["a small red circle"], audio=[sound])
    assert [len(tensor) for tensor in inputs.values()] == [1] * 5
    with torch.no_grad():
        outputs = found(**inputs)
    for name, query in (("text_embeds", {"text": "a small red circle"}), ("vision_embeds", {"image": picture})):
        np.testing.assert_allclose(outputs[name][0].numpy(), model.encode(query), atol=1e-6)
    np.testing.assert_allclose(outputs["audio_embeds"][0].numpy(), model.encode({"audio": sound}), atol=1e-6)


def test_the_file_opens_in_a_fresh_process_and_loads_as_the_guide_says(model: Searcher, file: Path) -> None:
    program = (
        "import json, sys, torch\n"
        "from sensorium.families.interaction.model import create_model\n"
        "from sensorium.families.interaction.use import load_model\n"
        "content = torch.load(sys.argv[1], weights_only=True)\n"
        "plain = {name: value for name, value in content.items() if name != 'model_state_dict'}\n"
        "model, processor = load_model(sys.argv[1])\n"
        "model.load_state_dict(content['model_state_dict'])\n"
        "fused = model(**processor(texts=['a small red circle']))['fused_features']\n"
        "print(json.dumps([plain, fused.tolist()]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True)
    plain, fused = json.loads(done.stdout)
    assert plain["size"] == "custom"
    assert (plain["embed_dim"], plain["num_classes"], plain["stage"], plain["epoch"]) == (32, 20, "full", 2.5)
    assert plain["labels"] == list(model.task.labels)
    assert plain["metrics"] == {"r_sum": 120.0}
    assert len(plain["mel"]["mean"]) == 16
    assert plain["vocabulary"] == model.loaded.facts["vocabulary"]
    with torch.no_grad():
        expected = model.task.model(**model.processor(texts=["a small red circle"]))["fused_features"]
    np.testing.assert_allclose(fused, expected.numpy(), atol=1e-5)


def test_heads_that_only_training_needs_are_not_in_the_file(model: Searcher, file: Path) -> None:
    weights = torch.load(file, weights_only=True)["model_state_dict"]
    InteractionModel(model.task.config).load_state_dict(weights, strict=True)
    assert len(weights) < len(model.task.state_dict())


def test_a_damaged_file_is_refused(model: Searcher, tmp_path: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        changed = {**content(model), **changes}
        torch.save({name: value for name, value in changed.items() if value is not None}, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match=match) as caught:
            load_model(tmp_path / "x.pt")
        assert "\n" not in str(caught.value)

    whole = content(model)
    weights = whole["model_state_dict"]
    first = next(iter(weights))
    refused("no model of `interaction`", family="thinking")
    refused("no model of `interaction`", model_state_dict=None)
    refused("format 2; this version reads format 1", format=2)
    refused("damaged at vocabulary", vocabulary=None)
    refused("damaged at mel.seconds", mel={**whole["mel"], "seconds": -1.0})
    refused("damaged; .*do not fit its model", mel={**whole["mel"], "mean": [0.0]})
    refused("damaged; .*must be a multiple", model={**whole["model"], "patch": 7})
    refused("its weights do not fit its model", model_state_dict={**weights, "more": torch.zeros(1)})
    refused("its weights do not fit its model", model={**whole["model"], "embedding": 64})
    refused("its checksum differs", model_state_dict={**weights, first: weights[first] + 1})
    refused("its checksum differs", epoch=3.5)
    refused("its checksum differs", labels=whole["labels"][::-1])
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged, or holds more"):
        load_model(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(tmp_path / "none.pt")


# --- the processor


def test_things_in_memory_are_as_good_as_files(model: Searcher, tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    picture.save(tmp_path / "x.png")
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 9000).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", wave, 16000, subtype="FLOAT")
    found = [
        model.processor(images=[picture, picture], audio=[wave, wave[:1000]]),
        model.processor(images=[tmp_path / "x.png"] * 2, audio=[str(tmp_path / "x.wav"), wave[:1000]]),
    ]
    assert found[0].keys() == found[1].keys() == {"images", "audio", "audio_mask"}
    for name, tensor in found[0].items():
        assert found[1][name].equal(tensor)
    assert found[0]["audio_mask"].sum(dim=1).tolist() == [57, 7]  # frames of 10 ms


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB"])
def test_large_and_transparent_pictures_in_memory_are_those_of_their_files(
    model: Searcher, tmp_path: Path, mode: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 4), np.uint8)
    picture = Image.fromarray(noise).convert(mode)
    picture.save(tmp_path / "x.png")
    kept, read = (model.processor(images=[one])["images"] for one in (picture, tmp_path / "x.png"))
    assert kept.equal(read)
    with pytest.raises(DataError, match="pixels of kind 'F'"):
        model.processor(images=[Image.new("F", (40, 40))])


def test_rows_that_do_not_fit_are_refused(model: Searcher, tmp_path: Path) -> None:
    for match, given in (
        (r"found 2 texts, 1 audio", {"texts": ["a", "b"], "audio": [np.zeros(800)]}),
        (r"found nothing", {}),
        (r"found 0 texts", {"texts": []}),
        (r"the text is empty", {"texts": [" "]}),
        (r"none\.png", {"images": [tmp_path / "none.png"]}),
    ):
        with pytest.raises(DataError, match=match):
            model.processor(**given)


# --- exports


def test_an_export_encodes_as_the_run_does(model: Searcher, run: Path, tmp_path: Path) -> None:
    folder, line = use.export(run, "hf", out=tmp_path / "export")
    assert "parameters" in line
    carried = sensorium.load(folder)
    for query in ({"text": "a small red circle"}, {"audio": items(model, "audio")[4]["audio"]}):
        assert np.array_equal(carried.encode(query), model.encode(query))
    with pytest.raises(ConfigError, match="holds no data to search in"):
        carried.search({"text": "x"})
    card = (folder / "README.md").read_text()
    assert "`shapes` (synthetic)" in card
    assert "| shapes/t2i/R@1 |" in card
    assert str(run.parent) not in card + (folder / "config.json").read_text()


def test_the_split_and_the_processor_show_the_same(model: Searcher) -> None:
    """A row of the evaluation and its file, side by side."""
    test = FAMILY.sources(model.loaded.config, Host()).test
    assert isinstance(test, EvalSource)
    for modality in ("text", "image", "audio"):
        row = int(test.numbers(modality, 0)[7])
        with torch.no_grad():
            shown = embed(model.task.model, test.collate([test.example(row, 0)]))[modality][0]
        expected = model.encode({modality: str(test.rows[row].content)})
        np.testing.assert_allclose(shown.numpy(), expected, atol=1e-6)
