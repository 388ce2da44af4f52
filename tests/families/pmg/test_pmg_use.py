"""Trained adapters in use: files that hold nothing else, pictures that follow from them, and what they say of it."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sensorium
from sensorium import cli, exported, families, use
from sensorium.engine import loop, settings
from sensorium.engine.contract import Host
from sensorium.errors import CheckpointError, ConfigError
from sensorium.families.pmg import drawing
from sensorium.families.pmg.model import PMGAdapter
from sensorium.families.pmg.tiny import tiny_folder, write_diffusion
from sensorium.families.pmg.use import Pictures, open_pictures

FAMILY = families.load("pmg")
QUICK = {"steps": 2, "images": 2}
HISTORY = ["a red circle", "a red ring"]


def cache_of(run: Path) -> Path:
    """Beside it, for whoever uses it later."""
    return run.parent / "cache"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("pmg") / "run"
        patch.setenv("SENSORIUM_CACHE", str(cache_of(folder)))
        changes = {"train": {"steps": 4}, "model": {"ema_decay": 0.5}, "data": {"grid_users": 0}}
        loop.train(FAMILY, settings.resolve(FAMILY, "tiny", changes), folder, quiet=True)
        yield folder


@pytest.fixture(autouse=True)
def _cache_of_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_CACHE", str(cache_of(run)))


@pytest.fixture(scope="module")
def adapter(run: Path) -> Path:
    """The run's export."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(cache_of(run)))
        return use.export(run, "hf")[0]


def pixels(pictures: list[Image.Image]) -> list[np.ndarray]:
    return [np.asarray(picture, np.int16) for picture in pictures]


def test_files_hold_the_adapter_and_give_the_same_pictures(run: Path, adapter: Path) -> None:
    assert {path.name for path in adapter.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert (adapter / "model.safetensors").stat().st_size < 4 * (64 + 128 + 1056) + 64 * 1024
    whole = sensorium.load(run)
    assert isinstance(whole, Pictures)
    first = pixels(whole.draw(HISTORY, "a square", how=QUICK))
    for found in (sensorium.load(adapter), open_pictures(adapter), open_pictures(run)):
        again = pixels(found.draw(HISTORY, "a square", how=QUICK))
        assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])  # another seed
    other = pixels(whole.draw(["a blue square", "a blue ring"], "a square", how=QUICK))
    assert np.abs(other[0] - first[0]).max() > 0
    without = pixels(whole.draw(HISTORY, "a square", how={**QUICK, "negative": "a circle"}))
    assert np.abs(without[0] - first[0]).max() > 0


def test_one_number_of_the_adapter_changes_the_picture(adapter: Path, tmp_path: Path) -> None:
    found = sensorium.load(adapter)
    first = pixels(found.draw(HISTORY, "a square", how=QUICK))[0]
    for name, parameter in found.task.adapter.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] += 20.0
        assert np.abs(pixels(found.draw(HISTORY, "a square", how=QUICK))[0] - first).max() > 0, name
        with torch.no_grad():
            parameter.copy_(kept)
    assert np.array_equal(pixels(found.draw(HISTORY, "a square", how=QUICK))[0], first)
    shutil.copytree(adapter, tmp_path / "gone")
    (tmp_path / "gone" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        sensorium.load(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="no such folder"):
        PMGAdapter.from_pretrained(tmp_path / "nothing")


def test_an_adapter_is_saved_and_opened_alone(adapter: Path, run: Path, tmp_path: Path) -> None:
    found = PMGAdapter.from_pretrained(adapter)
    with torch.no_grad():
        next(found.parameters()).add_(1)
    found.save_pretrained(tmp_path / "mine")
    again = PMGAdapter.from_pretrained(tmp_path / "mine")
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), again.parameters(), strict=True))
    assert sensorium.load(tmp_path / "mine").digest != sensorium.load(adapter).digest
    of_run = PMGAdapter.from_pretrained(run)
    exported_one = PMGAdapter.from_pretrained(adapter)
    pairs = zip(of_run.parameters(), exported_one.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    with pytest.raises(CheckpointError, match="says nothing of its base models"):
        PMGAdapter(found.sizes).save_pretrained(tmp_path / "other")
    content = exported.read_config(adapter)
    assert content["model"]["ema_decay"] == 0
    assert set(content["facts"]["bases"]) == {"llm", "unet", "vae", "text_encoder"}
    assert content["facts"]["sizes"]["soft"] == 2
    assert "{captions}" in content["facts"]["template"]


def test_other_bases_are_refused_by_size_and_by_weights(adapter: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    for name, width in (("same", 32), ("wide", 48)):
        (tmp_path / name).mkdir()
        write_diffusion(tmp_path / name, width=width)
    same = {"stable_diffusion": str(tmp_path / "same")}
    with pytest.raises(CheckpointError, match="was trained with another unet, vae, text_encoder; give that one"):
        open_pictures(adapter, same)
    assert open_pictures(adapter, same, allow_other_base=True).draw(HISTORY, "a square", how=QUICK)
    with pytest.raises(CheckpointError, match=r"'told': 32.*these base models have.*'told': 48"):
        open_pictures(adapter, {"stable_diffusion": str(tmp_path / "wide")}, allow_other_base=True)
    moved = shutil.copytree(tiny_folder("llm"), tmp_path / "llm")  # the same weights elsewhere
    assert open_pictures(adapter, {"llm": str(moved)}).digest == sensorium.load(adapter).digest


def sensorium_(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["sensorium", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def toy_of(run: Path) -> Path:
    return next(cache_of(run).glob("pmg-toy-*"))


def test_generate_draws_for_every_sample_and_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = json.loads((toy_of(run) / "test.json").read_text())[:3]
    (toy_of(run) / "few.json").write_text(json.dumps(samples))
    words = ["generate", run, "--data", toy_of(run) / "few.json", "--steps", 2, "--images", 2]
    out = tmp_path / "out"
    assert sensorium_(monkeypatch, *words, "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {"meta.json", "sample_0000", "sample_0001", "sample_0002"}
    files = {"gen_0.jpg", "gen_1.jpg", "grid.jpg", "references.jpg", "info.json"}
    assert {path.name for path in (out / "sample_0001").iterdir()} == files
    info = json.loads((out / "sample_0001" / "info.json").read_text())
    assert (info["sample_idx"], info["num_generated"], info["mode"]) == (1, 2, "target_soft")
    assert info["user_id"] == samples[1]["user_id"]
    assert info["target_caption"] == samples[1]["target_item_info"]["caption"]
    before = {path: path.read_bytes() for path in out.rglob("*.jpg")}

    shutil.rmtree(out / "sample_0001")
    (out / "sample_0002" / "info.json").unlink()
    shutil.rmtree(out / "sample_0002")
    stamp = (out / "sample_0000" / "gen_0.jpg").stat().st_mtime_ns
    capsys.readouterr()
    assert sensorium_(monkeypatch, *words, "--out", out, "--batch", 1) == 0
    assert "1 of 3 samples are there already" in capsys.readouterr().out
    assert (out / "sample_0000" / "gen_0.jpg").stat().st_mtime_ns == stamp
    for path, data in before.items():  # made one at a time they may differ by rounding
        pair = [np.asarray(Image.open(file), np.int16) for file in (path, write(tmp_path / "kept.jpg", data))]
        assert np.abs(pair[0] - pair[1]).max() <= 4
    assert sensorium_(monkeypatch, *words, "--out", out, "--seed", 7) == 2
    assert "its pictures were made with another drawing; --out takes a new folder" in capsys.readouterr().err


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_info_tells_how_to_make_the_same_picture(run: Path, tmp_path: Path) -> None:
    found = sensorium.load(run)
    found.draw_user("user 0", "a ring", tmp_path / "one", {**QUICK, "guidance": 3.0, "negative": "grey"}, Host())
    info = json.loads((tmp_path / "one" / "sample_0000" / "info.json").read_text())
    assert info["adapter_digest"] == found.digest
    drawn = info["drawing"]
    again = found.draw(
        info["history_captions"],
        info["target_caption"],
        info["user_style"],
        {
            "images": 1,
            "seed": info["seeds"][1],
            "seed_rule": "shared",
            "steps": drawn["steps"],
            "guidance": drawn["guidance"],
            "scheduler": drawn["scheduler"],
            "negative": info["negative_prompt"],
            "mode": info["mode"],
        },
    )
    again[0].save(tmp_path / "again.jpg", quality=95)
    pair = [Image.open(path) for path in (tmp_path / "again.jpg", tmp_path / "one" / "sample_0000" / "gen_1.jpg")]
    assert np.abs(np.asarray(pair[0], np.int16) - np.asarray(pair[1], np.int16)).max() <= 4


def test_generate_says_what_it_cannot_do(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: object) -> str:
        assert sensorium_(monkeypatch, "generate", run, "--out", tmp_path / "out", *words) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "give --data FILE, or --user and --target" in said()
    assert "give --data FILE, or --user and --target" in said("--user", "user 0")
    assert "no user 'usr 0' in the run's data; there are 20, such as user" in said("--user", "usr 0", "--target", "x")
    assert "guidance: input should be greater than or equal to 1" in said(
        "--user", "user 0", "--target", "x", "--guidance", 0.5, "--scheduler", "euler"
    )
    wrong = said("--user", "user 0", "--target", "x", "--scheduler", "euler", "--mode", "all")
    assert "2 problems" in wrong
    if not torch.cuda.is_available():
        assert "--device cuda: this machine has 0 GPUs" in said("--user", "user 0", "--target", "x", "--device", "cuda")


def test_a_checkpoint_of_a_run_is_its_own_folder(run: Path) -> None:
    last = max((run / "checkpoints").glob("step_*"))
    assert sensorium.load(last).digest == sensorium.load(run, last.name).digest
    with pytest.raises(ConfigError, match="is a checkpoint already"):
        sensorium.load(last, "latest")
    with pytest.raises(CheckpointError):
        sensorium.load(run / "checkpoints" / "step_99999999")


def test_a_family_that_does_not_draw_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(use.illustrator(run), Pictures)
    monkeypatch.setattr(use, "load", lambda *_: object())
    with pytest.raises(ConfigError, match="family 'pmg' draws no pictures"):
        use.illustrator(run)


def test_every_mode_draws(run: Path) -> None:
    found = sensorium.load(run)
    seen = []
    for mode in ("caption_only", "soft_only", "target_soft", "target_soft_style", "keywords"):
        [picture] = found.draw(HISTORY, "a square", "red", {"steps": 2, "mode": mode})
        seen.append(np.asarray(picture, np.int16))
    assert all(np.abs(one - other).max() > 0 for one, other in itertools.pairwise(seen))
    how = {"steps": 2, "mode": "keywords"}
    plain = [found.draw(history, "a square", "red", how)[0] for history in (HISTORY, ["x"])]
    assert np.array_equal(*map(np.asarray, plain))  # negative twin: without soft tokens the history says nothing
    assert drawing.read_how({"scheduler": "dpmsolver"}).many_steps == 25
