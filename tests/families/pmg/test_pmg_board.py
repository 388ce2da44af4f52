"""The table of an evaluation: one set of samples, no number without its judge, gains with their intervals."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium.data.media import load_image
from sensorium.data.tastes import Liked, Taste
from sensorium.engine.contract import Host
from sensorium.errors import ConfigError, DataError
from sensorium.families.pmg import board as boards
from sensorium.families.pmg import judges as judges_module
from sensorium.families.pmg import judging as judging_module
from sensorium.families.pmg.board import METRICS, NOT_BETTER, Board, stack
from sensorium.families.pmg.clip import Clip
from sensorium.families.pmg.judges import AESTHETIC, HEAD, INCEPTION, VGG, Aesthetic, Judges, Missing, open_judges
from sensorium.families.pmg.judging import FID_SAMPLES, Judging, common, unreadable
from sensorium.families.pmg.toy import draw
from sensorium.metrics.inception import Inception
from sensorium.metrics.lpips import WIDTHS, Lpips

SIDE = 64


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Taste]:
    """Two users; the second has a style text of 200 words."""
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))
    found = []
    for user, (colour, style) in enumerate((("red", "red"), ("blue", " ".join(["sky"] * 200)))):
        liked = []
        for shape in ("circle", "ring", "square"):
            path = tmp_path / f"{colour}-{shape}.png"
            draw(colour, shape, 80).save(path)
            liked.append(Liked(path.stem, f"a {colour} {shape}", path))
        found.append(Taste(str(user), tuple(liked[:2]), liked[2], style, f"object {user}"))
    return found


def judging(samples: list[Taste], weights_dir: Path | None = None, clip: str = "random:tiny") -> Judging:
    opened = open_judges(clip, None if weights_dir is None else str(weights_dir), "cpu", needs_clip=False)
    return Judging(samples, range(len(samples)), opened, SIDE, "squash", "cpu")


def targets(samples: list[Taste]) -> list[list[Image.Image]]:
    return [[load_image(taste.target.path)] for taste in samples]


def test_each_metric_is_what_its_name_says(samples: list[Taste]) -> None:
    judge = judging(samples)
    same, sets = judge.row("oracle", targets(samples).__getitem__, Host())
    assert same["ssim_target"] == pytest.approx([1, 1], abs=1e-12)
    assert same["cpis_target"] == pytest.approx([1, 1], abs=1e-5)
    assert sets["fd_clip"] == pytest.approx(0, abs=1e-6)
    assert np.isfinite(same["cps"]).all()  # 200 words are cut to what CLIP reads
    swapped, sets = judge.row("swapped", targets(samples[::-1]).__getitem__, Host())
    assert (swapped["ssim_target"] < 0.99).all()
    assert (swapped["ssim_history_avg"] < 0.99).all()
    assert sets["fd_clip"] == pytest.approx(0, abs=1e-6)  # of all pictures at once: their order is nothing to it
    both = [[load_image(taste.target.path), Image.new("RGB", (SIDE, SIDE))] for taste in samples]
    mean, _ = judge.row("two pictures", both.__getitem__, Host())
    alone, _ = judge.row("black", [[pair[1]] for pair in both].__getitem__, Host())
    for name, values in mean.items():
        assert values == pytest.approx((same[name] + alone[name]) / 2, abs=1e-5), name


def test_texts_and_pictures_of_the_sample_count(samples: list[Taste]) -> None:
    """Each metric follows its own reference and no other."""
    first, _ = judging(samples).row("a", targets(samples).__getitem__, Host())
    liked = samples[0].history[0]
    changes = {
        "cps": [replace(one, style="wood") for one in samples],
        "clip_score_target": [replace(one, target=replace(one.target, caption="a cross")) for one in samples],
        "cpis_history_avg": [replace(one, history=(liked,)) for one in samples],
    }
    for name, changed in changes.items():
        other, _ = judging(changed).row("b", targets(samples).__getitem__, Host())
        moved = {metric for metric in first if not np.allclose(first[metric], other[metric], atol=1e-6)}
        assert moved == ({name, "ssim_history_avg"} if "history" in name else {name})


def test_without_its_weights_a_metric_is_null_with_a_reason(samples: list[Taste]) -> None:
    judge = judging(samples, clip="nowhere/at-all")
    assert set(judge.skipped) == set(METRICS) - {"ssim_target", "ssim_history_avg"}
    found, sets = judge.row("a", targets(samples).__getitem__, Host())
    assert set(found) == {"ssim_target", "ssim_history_avg"}
    assert sets == {}
    metrics, values = stack({"a": found})
    content = boards.row_json(Board(samples, (0, 1), ("a",), metrics, values, {"a": sets}, judge.skipped), "a")
    assert [name for name, value in content["average_metrics"].items() if value is not None] == list(metrics)
    assert set(content["average_metrics"]) == set(METRICS)
    assert "nowhere/at-all" in judge.skipped["cpis_target"]
    assert judge.skipped["fid"].startswith(f"needs {FID_SAMPLES:,} samples, there are 2")
    with pytest.raises(ConfigError, match="nowhere/at-all"):
        open_judges("nowhere/at-all", None, "cpu", needs_clip=True)
    silent = judging([samples[0], replace(samples[1], style="")])
    assert silent.skipped["cps"] == "1 of 2 samples have no style text"
    assert "cpis_target" not in silent.skipped


def test_weights_must_be_those_of_their_names(
    samples: list[Taste], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = {n: torch.randn_like(v) * 0.05 for n, v in Lpips().state_dict().items() if n.startswith("features")}
    head = {f"lin{n}.model.1.weight": torch.full((1, width, 1, 1), 1 / width) for n, width in enumerate(WIDTHS)}
    torch.save(trunk, folder / VGG)
    opened = open_judges("nowhere/at-all", str(folder), "cpu", needs_clip=False)
    assert isinstance(opened.lpips, Missing)
    assert opened.lpips.reason == f"{folder} has no {HEAD}"
    assert isinstance(opened.inception, Missing)
    assert INCEPTION in opened.inception.reason
    assert isinstance(opened.aesthetic, Missing)
    assert AESTHETIC in opened.aesthetic.reason
    torch.save(head, folder / HEAD)
    with pytest.raises(ConfigError, match=rf"{VGG}: its sha256 begins with [0-9a-f]{{8}}, not 397923af; download it"):
        judging(samples, folder)
    for name in (VGG, HEAD):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        monkeypatch.setitem(judges_module.SHA256, name, digest[:12])
    judge = judging(samples, folder, clip="nowhere/at-all")
    found, _ = judge.row("a", targets(samples).__getitem__, Host())
    assert found["lpips_target"] == pytest.approx([0, 0], abs=1e-6)
    assert (found["lpips_history_avg"] > 1e-4).all()
    assert judge.judges.identities()[VGG] == judges_module.SHA256[VGG]
    with pytest.raises(ConfigError, match="no such folder of weights"):
        judging(samples, tmp_path / "nothing")


def test_fid_needs_many_samples_and_the_aesthetic_score_its_own_clip(
    samples: list[Taste], monkeypatch: pytest.MonkeyPatch
) -> None:
    none = Missing("not there")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Inception.of(Inception().state_dict())
        sizes = ((0, 32, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1))
        layers = {n: torch.nn.Linear(before, after) for n, before, after in sizes}
    weights = {f"layers.{n}.{name}": value for n, one in layers.items() for name, value in one.state_dict().items()}
    aesthetic = Aesthetic(weights, Clip.open("random:tiny"))
    judges = Judges(none, none, network, aesthetic)
    few = Judging(samples, range(2), judges, SIDE, "squash", "cpu")
    assert few.skipped["fid"].startswith("needs 2,048 samples, there are 2")
    assert "laion_aesthetic" not in few.skipped
    monkeypatch.setattr(judging_module, "FID_SAMPLES", 2)
    enough = Judging(samples, range(2), judges, SIDE, "squash", "cpu")
    found, sets = enough.row("swapped", targets(samples[::-1]).__getitem__, Host())
    assert sets == {"fid": pytest.approx(0, abs=1e-3)}  # the same pictures in another order
    rated = torch.nn.Sequential(*layers.values()).requires_grad_(False)(
        aesthetic.clip.pictures([targets(samples)[1][0].resize((64, 64), 3)])
    )
    assert found["laion_aesthetic"][0] == pytest.approx(rated.item(), abs=1e-5)
    assert set(found) == {"ssim_target", "ssim_history_avg", "laion_aesthetic"}


def test_rows_on_different_samples_are_impossible(samples: list[Taste]) -> None:
    three, two = np.zeros(3), np.zeros(2)
    with pytest.raises(DataError, match=r"rows of one table rest on different samples \(2, 3\)"):
        stack({"none": {"ssim_target": three}, "pmg": {"ssim_target": two}})
    with pytest.raises(DataError, match=r"rows of one table rest on different samples \(2, 3\)"):
        stack({"none": {"ssim_target": three, "ssim_history_avg": two}})
    with pytest.raises(DataError, match="row pmg was judged by other metrics"):
        stack({"none": {"ssim_target": two}, "pmg": {"ssim_history_avg": two}})
    metrics, values = stack({"none": {"ssim_target": three}})
    with pytest.raises(DataError, match=r"\(1, 1, 2\) rows, metrics and samples was given \(1, 1, 3\) numbers"):
        Board(samples, (0, 1), ("none",), metrics, values, {"none": {}}, {})
    hole = np.array([[[0.0, np.nan]]])
    with pytest.raises(DataError, match="ssim_target of row none, sample 1, is not a number"):
        Board(samples, (0, 1), ("none",), metrics, hole, {"none": {}}, {})
    whole = Board(samples, (0, 1), ("none",), metrics, np.zeros((1, 1, 2)), {"none": {}}, {})
    assert whole.users == ["0", "1"]


def test_a_missing_picture_fails_or_leaves_every_row(samples: list[Taste]) -> None:
    assert unreadable(samples) == {}
    samples[1].history[0].path.unlink()
    bad = unreadable(samples)
    assert list(bad) == [1]
    with pytest.raises(DataError, match=r"1 of 2 samples lack a picture, first sample 1 \(.*blue-circle\.png"):
        common(bad, 2, Host(), allow_missing=False)
    said: list[str] = []
    assert common(bad, 2, Host(say=said.append), allow_missing=True) == [0]
    assert said[0].endswith("1 samples are left, in every row")
    with pytest.raises(DataError, match="2 of 2 samples"):
        common({0: "gone", 1: "gone"}, 2, Host(), allow_missing=True)


def test_gains_are_paired_and_know_which_way_is_better(samples: list[Taste]) -> None:
    many = [replace(samples[0], user=str(number // 2)) for number in range(40)]
    draws = np.random.default_rng(0)
    hard = draws.normal(0, 10, 40)  # how hard a sample is: the same for both rows
    noise = draws.normal(0, 0.1, 40)
    values = np.stack([np.stack([hard, hard]), np.stack([hard + 0.2 + noise, hard + 0.2 + noise])])
    board = Board(
        many, range(40), ("none", "pmg"), ("lpips_history_avg", "cpis_history_avg"), values, {"none": {}, "pmg": {}}, {}
    )
    assert board.gain("cpis_history_avg", "none").low > 0.1
    assert board.gain("lpips_history_avg", "none").high < -0.1  # lower is better
    shown = boards.evaluation(board, "")
    assert shown.warnings == (f"{NOT_BETTER}: pmg is not surely better than none in lpips_history_avg",)
    assert [row[:2] + row[-1:] for row in shown.tables[1].rows] == [
        ("none", "lpips_history_avg", "no"),
        ("none", "cpis_history_avg", "yes"),
    ]
    content = boards.differences_json(board)
    assert set(content) == {"none"}
    assert content["none"]["cpis_history_avg"]["gain"] == pytest.approx(0.2, abs=0.05)
    alone = boards.row_json(board, "none")["intervals"]["cpis_history_avg"]
    assert alone[0] < 0 < alone[1]  # negative twin: unpaired, such a gain would be lost in the spread of the samples
