"""Search, segments, exports: one trained run, used in every way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sensorium
from sensorium import families, use
from sensorium.cli import app
from sensorium.engine import loop, settings
from sensorium.engine.contract import FolderSearcher
from sensorium.errors import ConfigError, DataError
from sensorium.families.video_retrieval.use import Searcher

FAMILY = families.load("video_retrieval")
TEXT = "a red square moves to the left"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("runs") / "run"
        config = settings.resolve(FAMILY, "tiny", {"train": {"steps": 2}, "evaluate": {"every_epochs": None}})
        loop.train(FAMILY, config, folder, quiet=True)
        yield folder


@pytest.fixture(scope="module")
def searcher(run: Path) -> Searcher:
    found = sensorium.load(run)
    assert isinstance(found, Searcher)
    return found


@pytest.fixture
def folder(searcher: Searcher, tmp_path: Path) -> Path:
    """Three of the videos, in a folder of their own."""
    (tmp_path / "videos/deep").mkdir(parents=True)
    for number, hit in enumerate(searcher.search({"text": TEXT}, k=3)):
        assert hit.video is not None
        shutil.copy(hit.video, tmp_path / "videos" / ("deep" if number else "") / f"{number}.mp4")
    (tmp_path / "videos/notes.txt").write_text("no video")
    return tmp_path / "videos"


def test_what_is_found_is_what_the_vectors_say(searcher: Searcher) -> None:
    hits = searcher.search({"text": TEXT}, k=64)
    assert len({hit.video for hit in hits}) == 64
    own = searcher.encode({"text": TEXT})
    for hit in hits[:3]:
        assert hit.video is not None
        assert hit.score == pytest.approx(float(searcher.encode({"video": hit.video}) @ own), abs=1e-5)
        assert hit.segment is not None
        event = searcher.retrieve_event(hit.video, TEXT)
        assert hit.segment == pytest.approx((event.start_s, event.end_s))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_video_finds_texts(searcher: Searcher) -> None:
    video = searcher.search({"text": TEXT}, k=1)[0].video
    assert video is not None
    hits = searcher.search({"video": video}, k=5)
    assert all(hit.text and hit.video is None and hit.segment is None for hit in hits)
    assert hits[0].score == pytest.approx(float(searcher.encode({"text": str(hits[0].text)}) @ searcher.encode({"video": video})), abs=1e-5)  # fmt: skip  # noqa: E501
    assert searcher.search({"video": video}, "video", k=1)[0].video == video


def test_videos_of_a_folder(searcher: Searcher, folder: Path) -> None:
    assert isinstance(searcher, FolderSearcher)
    within = searcher.within(folder)
    hits = within.search({"text": TEXT})
    assert sorted(hit.id for hit in hits) == ["0.mp4", "deep/1.mp4", "deep/2.mp4"]
    (folder / "deep/2.mp4").unlink()  # another folder now: another index
    assert len(searcher.within(folder).search({"text": TEXT})) == 2
    with pytest.raises(ConfigError, match="cannot search among text"):
        within.search({"video": str(folder / "0.mp4")})
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="holds no videos"):
        searcher.within(folder / "empty").search({"text": TEXT})


def test_questions_that_cannot_be_asked(searcher: Searcher) -> None:
    for query in ({}, {"image": "a.png"}, {"text": "a", "video": "b.mp4"}):
        with pytest.raises(ConfigError, match="cannot ask with"):
            searcher.search(query, "video")
    with pytest.raises(ConfigError, match="cannot re-rank"):
        searcher.search({"text": TEXT}, rerank=5)
    with pytest.raises(ConfigError, match="cannot search among image"):
        searcher.search({"text": TEXT}, "image")


def test_the_command_line(run: Path, folder: Path, tmp_path: Path) -> None:
    def called(*words: str) -> str:
        done = CliRunner().invoke(app, ["search", str(run), *words], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    assert called(TEXT, "--top", "2").count(" s\n") == 2  # each with its segment
    assert called(TEXT, "--videos", str(folder)).count(".mp4") == 6  # name and path
    queries = tmp_path / "queries.json"
    queries.write_text(json.dumps([TEXT, {"text": "a blue disc"}]))
    found = json.loads(called("--queries", str(queries), "--json", "--top", "3"))
    assert [len(hits) for hits in found] == [3, 3]
    assert found[0][0].keys() >= {"score", "video", "segment"}
    wrong = {"{": "cannot be read", "[]": "expected a list", '[{"text": 1}]': "entry 0 is no query"}
    for content, message in wrong.items():
        queries.write_text(content)
        with pytest.raises(DataError, match=message):
            use.read_queries(queries)


def test_an_export_searches_in_folders(run: Path, searcher: Searcher, folder: Path, tmp_path: Path) -> None:
    out, line = use.export(run, "hf", out=tmp_path / "hf")
    assert "sensorium.load(FOLDER) reads it" in line
    found = sensorium.load(out)
    assert [hit.score for hit in found.within(folder).search({"text": TEXT})] == [
        hit.score for hit in searcher.within(folder).search({"text": TEXT})
    ]
    with pytest.raises(ConfigError, match="holds no data to search in; name a folder"):
        found.search({"text": TEXT})


def test_embeddings_as_arrays(run: Path, searcher: Searcher, tmp_path: Path) -> None:
    out, _ = use.export(run, "embeddings", out=tmp_path / "vectors")
    items = json.loads((out / "items.json").read_text())
    for name in ("video", "text"):
        matrix = np.load(out / f"{name}.npy")
        assert matrix.shape == (len(items[name]), 64)
        assert matrix[3] == pytest.approx(searcher.encode({name: items[name][3][name]}), abs=1e-5)


def test_a_merged_clip_is_one_for_transformers(run: Path, tmp_path: Path) -> None:
    """LoRA trained for two steps is in its weights: the vectors are those of our towers, and not of those without."""
    from transformers import CLIPModel

    out, line = use.export(run, "merged", out=tmp_path / "clip")
    assert "without what a CLIP cannot do: merge, group" in line
    theirs = CLIPModel.from_pretrained(out).eval()
    model = sensorium.load(run).model
    ids, mask = sensorium.load(run).media.words.encode([TEXT, "a bar"])
    with torch.no_grad():
        expected = model.encode_text(ids, mask)
        found = theirs.get_text_features(input_ids=ids, attention_mask=mask)
        found = getattr(found, "pooler_output", found)
        torch.testing.assert_close(torch.nn.functional.normalize(found, dim=-1), expected, atol=1e-5, rtol=0)
        model.active_parts = frozenset()
        assert not torch.allclose(model.encode_text(ids, mask), expected, atol=1e-5)
    again = settings.resolve(FAMILY, "tiny", {"model": {"clip": str(out)}, "train": {"steps": 1}})
    loop.train(FAMILY, again, tmp_path / "again", quiet=True)  # and one to go on from
