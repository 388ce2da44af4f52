"""Adapters beside other ways to make pictures: every row for the same samples, with the same noise."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sensorium import cli, families, use
from sensorium import config as configuration
from sensorium.data.tastes import Places, Taste, read_tastes
from sensorium.engine import settings
from sensorium.engine.contract import Evaluation, Host
from sensorium.errors import CheckpointError, ConfigError, DataError
from sensorium.families.pmg.baselines import Baselines
from sensorium.families.pmg.comparing import CompareConfig, others
from sensorium.families.pmg.config import ToyConfig
from sensorium.families.pmg.diffusion import open_unet
from sensorium.families.pmg.drawing import read_how
from sensorium.families.pmg.inversion import Lesson, Vocabulary, learn, pictures_of
from sensorium.families.pmg.judging import unreadable
from sensorium.families.pmg.prompts import template_of
from sensorium.families.pmg.task import folder_of, open_task, sections
from sensorium.families.pmg.tiny import DIFFUSION, tiny_folder
from sensorium.families.pmg.toy import write_toy
from sensorium.families.pmg.use import Pictures

FAMILY = families.load("pmg")
ROWS = "none,keywords,soft,pmg,textual_inversion,ip_adapter,other_user,copy_history,oracle_target"
DRAWN = ROWS.split(",")[:7]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two users with two samples each in ``test.json``, and the tiny models in a cache beside it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("compare") / "world"
        folder.mkdir()
        patch.setenv("SENSORIUM_CACHE", str(folder.parent / "cache"))
        write_toy(folder, ToyConfig(train_users=2, held_users=2, samples=2))
        yield folder


@pytest.fixture(scope="module")
def pictures(world: Path) -> Pictures:
    """An adapter that was never trained: of pictures nothing is expected here but that they are compared rightly."""
    config = settings.resolve(FAMILY, "tiny", {})
    model, data = sections(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = open_task(model)
        with torch.no_grad():
            task.adapter.mapping.weight.mul_(20)  # so that soft tokens are seen
    return Pictures(task, config, template_of(data.name, None), "0" * 64)


@pytest.fixture(scope="module")
def ip_folder(world: Path) -> Path:
    """A random IP-Adapter for the tiny Stable Diffusion, in the layout of the published one."""
    folder = world.parent / "ip"
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = CLIPVisionConfig(**sizes, projection_dim=16, image_size=32, patch_size=8, initializer_factor=4.0)
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    unet = open_unet(tiny_folder(DIFFUSION))
    width = unet.config.cross_attention_dim
    state = {"image_proj.proj.weight": torch.randn(4 * width, 16), "image_proj.proj.bias": torch.zeros(4 * width)}
    state |= {"image_proj.norm.weight": torch.ones(width), "image_proj.norm.bias": torch.zeros(width)}
    places = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    for number, place in enumerate(places):
        key = unet.get_submodule(place).to_k
        for part in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{2 * number + 1}.{part}.weight"] = torch.randn(key.out_features, key.in_features)
    save_file(state, folder / "ip-adapter_sd15.safetensors")
    return folder


def typed(monkeypatch: pytest.MonkeyPatch, pictures: Pictures, *words: object) -> int:
    monkeypatch.setattr(use, "load", lambda *_: pictures)
    monkeypatch.setattr(sys, "argv", ["sensorium", "evaluate", "RUN", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def info(folder: Path, row: str, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / row / f"sample_{number:04}" / "info.json").read_text())
    return found


def pixels(folder: Path, row: str, number: int = 0) -> np.ndarray:
    return np.asarray(Image.open(folder / row / f"sample_{number:04}" / "gen_0.jpg"), np.int16)


def test_one_table_of_all_rows(
    world: Path,
    pictures: Pictures,
    ip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--data", world / "test.json", "--out", tmp_path, "--steps", 2, "--ti-steps", 2, "--device", "cpu"]
    words += ["--ip-adapter", ip_folder]
    assert typed(monkeypatch, pictures, *words, "--compare", ROWS) == 0
    shown = capsys.readouterr().out
    header = next(line for line in shown.splitlines() if "metric" in line)
    assert header.split()[1:3] == ["none", "keywords"]
    assert "4 samples of 2 users in every cell" in shown
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(content["rows"]) == ROWS.split(",")
    assert (content["total_samples"], content["evaluated_samples"], content["skipped_rows"]) == (4, 4, {})
    assert content["protocol"]["style_texts"] == ["preferences supplied"]
    whose = [[one["user_id"], one["target_item_id"]] for one in content["rows"]["none"]["per_sample_results"]]
    for name, row in content["rows"].items():
        assert [[one["user_id"], one["target_item_id"]] for one in row["per_sample_results"]] == whose, name
        numbers = row["per_sample_results"][2]["metrics"]
        assert set(numbers) == {"ssim_target", "ssim_history_avg", "cps", "cpis_history_avg", "cpis_target"} | {
            "clip_score_target"
        }
        assert row["average_metrics"]["lpips_target"] is None
        assert row["average_metrics"]["hpsv2"] is None
        assert row["average_metrics"]["fd_clip"] is not None
        low, high = row["intervals"]["ssim_target"]
        assert low <= row["average_metrics"]["ssim_target"] <= high
    assert "weights_dir" in content["skipped_metrics"]["lpips_target"]
    assert content["skipped_metrics"]["hpsv2"] == "there is no code here that computes HPS v2.1"
    oracle = content["rows"]["oracle_target"]["average_metrics"]
    assert oracle["ssim_target"] == pytest.approx(1)
    assert oracle["cpis_target"] == pytest.approx(1, abs=1e-5)
    for row in DRAWN[1:]:
        assert [info(tmp_path, row, n)["seeds"] for n in range(4)] == [
            info(tmp_path, "none", n)["seeds"] for n in range(4)
        ]
        assert np.abs(pixels(tmp_path, row) - pixels(tmp_path, "none")).max() > 4, row
    own, other = info(tmp_path, "pmg", 0), info(tmp_path, "other_user", 0)
    assert own["target_caption"] == other["target_caption"]
    assert set(own["history_captions"]).isdisjoint(other["history_captions"])
    assert own["keywords"] != other["keywords"]

    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    stamps |= {path: path.stat().st_mtime_ns for path in (tmp_path / "vectors").iterdir()}
    assert len(list((tmp_path / "vectors").iterdir())) == 2  # users, not samples
    assert typed(monkeypatch, pictures, *words, "--compare", "pmg,none,textual_inversion") == 0  # nothing is made anew
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    again = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(again["rows"]) == ["pmg", "none", "textual_inversion"]
    assert again["rows"]["pmg"] == content["rows"]["pmg"]


def test_missing_pictures_and_few_users_shrink_every_row(world: Path, pictures: Pictures, tmp_path: Path) -> None:
    copied = shutil.copytree(world, tmp_path / "world")
    data = copied / "test.json"
    samples = read_tastes(data, Places())
    how = {"rows": ["none", "copy_history", "oracle_target"], "draw": {"steps": 1, "device": "cpu"}}
    few = {**how, "rows": ["copy_history", "oracle_target"], "ti_users": 1}  # nothing is drawn
    pictures.compare_file(data, tmp_path / "few", few, Host())
    content = json.loads((tmp_path / "few" / "evaluation.json").read_text())
    assert (content["total_samples"], content["evaluated_samples"]) == (4, 2)
    for row in content["rows"].values():
        assert len({one["user_id"] for one in row["per_sample_results"]}) == 1
        assert len(row["per_sample_results"]) == 2
    samples[3].target.path.unlink()
    with pytest.raises(DataError, match=r"lack a picture, first sample .*--allow-missing"):
        pictures.compare_file(data, tmp_path / "out", how, Host())
    assert not (tmp_path / "out").exists()
    pictures.compare_file(data, tmp_path / "out", {**how, "judge": {"allow_missing": True}}, Host())
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["evaluated_samples"] < 4
    kept = [one["sample_idx"] for one in content["rows"]["none"]["per_sample_results"]]
    assert kept == [number for number in range(4) if number not in unreadable(samples)]
    assert {len(row["per_sample_results"]) for row in content["rows"].values()} == {content["evaluated_samples"]}


def test_what_cannot_be_compared_is_said_before_anything_is_drawn(
    world: Path,
    pictures: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(*words: object) -> str:
        assert typed(monkeypatch, pictures, *words) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    data = ["--data", world / "test.json", "--out", tmp_path / "out"]
    assert "rows.1: input should be 'none', 'keywords'" in said(*data, "--compare", "none,verifier")
    assert "a row stands there twice" in said(*data, "--compare", "none,none")
    assert "--ti-users 3: the data have 2 users" in said(*data, "--ti-users", 3)
    assert "expected one ip-adapter*.safetensors" in said(*data, "--compare", "ip_adapter", "--ip-adapter", tmp_path)
    assert "row other_user needs samples of two users" in said(*data, "--compare", "other_user", "--ti-users", 1)
    assert "nothing is left to be judged: needs --ip-adapter FOLDER" in said(*data, "--compare", "ip_adapter")
    assert "nowhere/at-all" in said(*data, "--compare", "none", "--clip", "nowhere/at-all")
    assert "no such folder of weights" in said(*data, "--compare", "none", "--weights-dir", tmp_path / "gone")
    assert "with --data give --out FOLDER" in said("--data", world / "test.json")
    assert "with --data give --out FOLDER" in said(*data, "--split", "val")
    assert "--compare, --steps: only with --data FILE" in said("--compare", "none", "--steps", 2)
    lonely = json.loads((world / "test.json").read_text())[:2]
    (world / "lonely.json").write_text(json.dumps(lonely))
    assert "row other_user needs samples of two users" in said("--data", world / "lonely.json", "--out", data[3])
    with pytest.raises(ConfigError, match=r"draw\.mode and draw\.select: each row has"):
        pictures.compare_file(world / "test.json", tmp_path / "out", {"draw": {"mode": "keywords"}}, Host())
    monkeypatch.setattr(use, "load", lambda *_: object())
    monkeypatch.setattr(use, "family_of", lambda _: FAMILY)
    with pytest.raises(ConfigError, match="family 'pmg' has no pictures to compare; leave --data out"):
        use.comparer(Path("RUN"))


def test_another_user_is_another_user(world: Path) -> None:
    samples = read_tastes(world / "test.json", Places())
    found = others(samples, 0)
    owners = {captions(taste): taste.user for taste in samples}
    for taste, other in zip(samples, found, strict=True):
        assert (other.user, other.target) == (taste.user, taste.target)  # noise and target are the sample's own
        assert owners[captions(other)] != taste.user
        assert other.style != taste.style
    assert found == others(samples, 0)


def captions(taste: Taste) -> tuple[str, ...]:
    return tuple(liked.caption for liked in taste.history)


def test_an_adapter_of_weight_0_draws_what_stable_diffusion_draws(
    world: Path, pictures: Pictures, ip_folder: Path, tmp_path: Path
) -> None:
    """By the library's pipeline and by ours: the same text, noise, steps, guidance and negative prompt."""
    samples = read_tastes(world / "test.json", Places())[:1]
    how = read_how({"steps": 2, "device": "cpu"})
    for scale in (0.0, 1.0):
        config = CompareConfig(ip_adapter=str(ip_folder), ip_scale=scale)
        rows = Baselines(pictures.task, pictures.data, config, tmp_path)
        rows.ip(samples, tmp_path / f"ip-{scale:g}", how, Host())
    pictures._draw(samples, tmp_path / "none", how.model_copy(update={"mode": "caption_only"}), Host())
    assert np.abs(pixels(tmp_path, "ip-0") - pixels(tmp_path, "none")).max() <= 4  # JPEG of rounding
    assert np.abs(pixels(tmp_path, "ip-1") - pixels(tmp_path, "none")).max() > 8


def test_a_word_is_learned_from_what_is_no_target(world: Path, pictures: Pictures) -> None:
    samples = read_tastes(world / "test.json", Places())
    liked = pictures_of(samples[0].user, samples)
    targets = {taste.target.path for taste in samples if taste.user == samples[0].user}
    assert liked
    assert targets.isdisjoint(one.path for one in liked)
    answer = [Taste("1", (samples[0].target,), samples[0].target, "", "here")]
    with pytest.raises(DataError, match="user 1: every picture of the history is also a target"):
        pictures_of("1", answer)

    task, folder = pictures.task, folder_of(pictures.task)
    words = Vocabulary(folder, "cpu")
    first = words.first()
    lesson = Lesson(12, 0.05, 2, 64, "squash", 1)
    vector = learn(task, folder, words, liked, lesson)
    assert vector.shape == first.shape
    assert torch.equal(vector, learn(task, folder, words, liked, lesson))
    assert float((vector - first).abs().max()) > 0.05
    assert not any(parameter.grad is not None for parameter in task.unet.parameters())
    length = task.shape.text_length
    before, after = (words.states(["a ring", "a " + "very " * 80 + "long text"], v, length) for v in (first, vector))
    assert before.shape == (2, length, task.shape.told)
    assert (before - after).abs().amax((1, 2)).min() > 0  # a long caption does not push the word out


def test_pictures_follow_from_the_learned_word(world: Path, pictures: Pictures, tmp_path: Path) -> None:
    samples = read_tastes(world / "test.json", Places())[:1]
    for lr in (1e-9, 5.0):
        config = CompareConfig(inversion={"steps": 1, "lr": lr})
        rows = Baselines(pictures.task, pictures.data, config, tmp_path / "vectors")
        rows.invert(samples, tmp_path / f"{lr:g}", read_how({"steps": 2, "device": "cpu"}), Host())
    assert np.abs(pixels(tmp_path, "1e-09") - pixels(tmp_path, "5")).max() > 8
    said = info(tmp_path, "5", 0)["target_caption"]
    assert said == f"{samples[0].target.caption}, in the style of <{samples[0].user}>"
    with pytest.raises(CheckpointError, match="made by another adapter"):
        pictures.redraw(tmp_path / "5" / "sample_0000")
    other = [replace(samples[0], history=samples[0].history[:1])]
    with pytest.raises(ConfigError, match="its pictures were made with another histories"):
        rows.invert(other, tmp_path / "5", read_how({"steps": 2, "device": "cpu"}), Host())


OPTIONS = {  # and where they arrive
    "--compare": ("none,soft", "rows", ("none", "soft")),
    "--images": ("3", "draw.images", 3),
    "--steps": ("7", "draw.steps", 7),
    "--guidance": ("2.5", "draw.guidance", 2.5),
    "--scheduler": ("ddpm", "draw.scheduler", "ddpm"),
    "--seed": ("9", "draw.seed", 9),
    "--batch": ("2", "draw.batch", 2),
    "--keywords": ("file", "draw.keywords", "file"),
    "--preferences": ("p.json", "draw.preferences", "p.json"),
    "--image-dir": ("pictures", "draw.image_dir", "pictures"),
    "--device": ("cpu", "draw.device", "cpu"),
    "--clip": ("clips", "judge.clip", "clips"),
    "--weights-dir": ("weights", "judge.weights_dir", "weights"),
    "--allow-missing": (None, "judge.allow_missing", True),
    "--ip-adapter": ("ip", "ip_adapter", "ip"),
    "--ti-users": ("5", "ti_users", 5),
    "--ti-steps": ("6", "inversion.steps", 6),
}


def test_every_option_arrives(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived: list[CompareConfig] = []

    class Noted:
        def compare_file(self, data: Path, out: Path, how: dict[str, Any], host: Host) -> Evaluation:
            arrived.append(configuration.build(CompareConfig, how))
            return Evaluation({})

    words = [word for name, (value, *_) in OPTIONS.items() for word in (name, value) if word is not None]
    monkeypatch.setattr(pictures, "compare_file", Noted().compare_file)
    assert typed(monkeypatch, pictures, "--data", "d", "--out", "o", *words) == 0
    found = configuration.flat(arrived[0])
    assert {place: found[place] for _, place, _ in OPTIONS.values()} == {
        place: list(value) if isinstance(value, tuple) else value for _, place, value in OPTIONS.values()
    }
    plain = configuration.flat(CompareConfig())
    assert all(found[place] != plain[place] for _, place, _ in OPTIONS.values())
    command: Any = typer.main.get_command(cli.app).commands["evaluate"]  # type: ignore[attr-defined]
    others_ = {"--data", "--out", "--split", "--checkpoint", "--require-use", "--require-climate-use"}
    named = {name for one in command.params for name in one.opts if name.startswith("--")}
    assert named - {"--help"} == set(OPTIONS) | others_
