"""Drawing with an adapter: weights of the words, choice, seeds, samplers, kills, and published files to begin with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from disks import Deadly, on
from PIL import Image

import sensorium
from sensorium import cli
from sensorium.engine.contract import Host
from sensorium.errors import CheckpointError, ConfigError, DataError
from sensorium.families.pmg import drawing, keywords
from sensorium.families.pmg import use as pmg_use
from sensorium.families.pmg.config import ToyConfig
from sensorium.families.pmg.keywords import Answer
from sensorium.families.pmg.model import PMGAdapter
from sensorium.families.pmg.sampling import picture_seed
from sensorium.families.pmg.toy import toy_folder
from sensorium.families.pmg.use import Pictures

BASES = {"llm": "random:tiny", "stable_diffusion": "random:tiny", "clip": "random:tiny"}
HISTORY = ["a red circle", "a red ring"]
QUICK = {"steps": 2, "batch": 1}


def published(seed: int = 0, *, soft: int = 2, prefix: int = 2) -> dict[str, torch.Tensor]:
    """A state dict as the published code writes it, for the tiny base models: 2 layers, 2 key/value heads of 8."""
    drawn = torch.Generator().manual_seed(seed)
    return {
        "trainable_prompt": torch.randn(1, soft, 32, generator=drawn),
        "prefix_tokens": torch.arange(prefix),
        "prefix_encoder.embedding.weight": torch.randn(prefix, 2 * 2 * 2 * 8, generator=drawn),
        "mapping_layer.weight": torch.randn(32, 32, generator=drawn),
        "mapping_layer.bias": torch.randn(32, generator=drawn),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a cache, an adapter that was published, and two samples; the second has no style."""
    folder = tmp_path_factory.mktemp("pmg-drawing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(folder / "cache"))
        torch.save(published(), folder / "soft.pth")
        adapter = PMGAdapter.from_upstream(folder / "soft.pth", BASES, {"image_size": 64}, "fp32")
        adapter.save_pretrained(folder / "adapter")
        toy = toy_folder(ToyConfig())
        samples = json.loads((toy / "test.json").read_text())[2:4]
        del samples[1]["user_style"]
        (toy / "few.json").write_text(json.dumps(samples))
        (folder / "few.json").symlink_to(toy / "few.json")
        yield folder


@pytest.fixture(autouse=True)
def _cache_of_the_module(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_CACHE", str(made / "cache"))


@pytest.fixture(scope="module")
def model(made: Path) -> Pictures:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(made / "cache"))
        found = sensorium.load(made / "adapter")
        assert isinstance(found, Pictures)
        return found


def said(lines: list[str]) -> Host:
    return Host(say=lines.append)


def info_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "info.json").read_text())
    return found


def differ(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def jpeg(picture: Image.Image, folder: Path) -> bytes:
    picture.save(folder / "again.jpg", quality=95)
    return (folder / "again.jpg").read_bytes()


def samples_of(made: Path) -> Path:
    return (made / "few.json").resolve()


def test_a_published_file_becomes_an_adapter(made: Path, tmp_path: Path) -> None:
    found = PMGAdapter.from_pretrained(made / "adapter")
    given = published()
    assert found.sizes.plain() == {
        **{"layers": 2, "width": 32, "heads": 2, "head_size": 8, "told": 32, "soft": 2, "prefix": 2},
    }
    assert torch.equal(found.image_prompt_NH, given["trainable_prompt"][0])
    # As the published code reads it: [tokens, layers, 2, heads, size].
    row = given["prefix_encoder.embedding.weight"].view(2, 2, 2, 2, 8)
    assert torch.equal(found.prefix_L2KPD[1, 0, 1, 0], row[0, 1, 0, 1])
    assert torch.equal(found.prefix_L2KPD[0, 1, 0, 1], row[1, 0, 1, 0])
    assert torch.equal(found.mapping.weight, given["mapping_layer.weight"])
    assert torch.equal(found.mapping.bias, given["mapping_layer.bias"])

    def refused(change: dict[str, Any], match: str) -> None:
        content = {name: value for name, value in {**given, **change}.items() if value is not None}
        torch.save(content, tmp_path / "soft.pth")
        with pytest.raises(CheckpointError, match=match):
            PMGAdapter.from_upstream(tmp_path / "soft.pth", BASES)

    refused({"mapping_layer.bias": None}, r"is no published adapter, see 'mapping_layer\.bias'")
    refused({"other": torch.zeros(1)}, "is no published adapter, see 'other'")
    refused({"trainable_prompt": torch.zeros(1, 2, 48)}, r"trainable_prompt has the shape \(1, 2, 48\), these base")
    refused({"prefix_encoder.embedding.weight": torch.zeros(2, 65)}, "prefix_encoder.embedding.weight has the shape")
    refused({"prefix_encoder.trans.0.weight": torch.zeros(1)}, "its prefix is made by a network")
    refused({"trainable_prompt": "text"}, "must be plain tensors")
    torch.save({f"module.{name}": value for name, value in given.items() if "prefix" not in name}, tmp_path / "no.pth")
    assert PMGAdapter.from_upstream(tmp_path / "no.pth", BASES).prefix_L2KPD is None


def test_another_adapter_draws_otherwise_and_none_draws_nothing(made: Path, model: Pictures, tmp_path: Path) -> None:
    first = model.draw(HISTORY, "a square", how=QUICK)[0]
    torch.save(published(1), tmp_path / "soft.pth")
    PMGAdapter.from_upstream(tmp_path / "soft.pth", BASES, {"image_size": 64}, "fp32").save_pretrained(tmp_path / "two")
    assert differ(first, sensorium.load(tmp_path / "two").draw(HISTORY, "a square", how=QUICK)[0]) > 0
    for gone in ("model.safetensors", "config.json"):
        folder = shutil.copytree(made / "adapter", tmp_path / gone)
        (folder / gone).unlink()
        with pytest.raises(CheckpointError):
            sensorium.load(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        sensorium.load(tmp_path / "empty")


def test_words_weigh_by_scale_and_by_repeating(model: Pictures) -> None:
    styled = {**QUICK, "mode": "target_soft_style"}
    plain = model.draw(HISTORY, "a square", "red, round", styled)[0]
    scaled = model.draw(HISTORY, "a square", "red, round", {**styled, "preference_weights": [1, 3]})
    assert len(scaled) == 2
    assert differ(plain, scaled[0]) == 0
    assert differ(plain, scaled[1]) > 0
    silent = model.draw(HISTORY, "a square", "red, round", {**styled, "preference_weights": [0]})[0]
    assert differ(silent, model.draw(HISTORY, "a square", "blue", {**styled, "preference_weights": [0]})[0]) == 0
    how = {**styled, "weighting": "repeat", "preference_weights": [1, 2]}
    repeated = model.draw(HISTORY, "a square", "red", how)
    assert differ(repeated[0], model.draw(HISTORY, "a square", "red", styled)[0]) == 0
    assert differ(repeated[1], model.draw(HISTORY, "a square", "red, red", styled)[0]) == 0
    assert differ(repeated[0], repeated[1]) > 0  # negative twin
    with pytest.raises(ConfigError, match="preference_weights have no effect with mode target_soft"):
        model.draw(HISTORY, "a square", "red", {**QUICK, "preference_weights": [1]})


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"clip": "x"}, "clip has no effect without select"),
        ({"alpha": 0.5}, "alpha has no effect without select"),
        ({"weighting": "repeat"}, "weighting repeat needs preference_weights"),
        ({"weighting": "repeat", "preference_weights": [1.5]}, "allowed with weighting repeat are whole numbers"),
        ({"preference_weights": [11]}, "allowed with weighting scale are 0 to 10"),
        ({"keywords": "off", "num_keywords": 3}, "num_keywords has no effect"),
        ({"keywords": "history", "preferences": "x"}, "preferences have no effect"),
    ],
)
def test_what_would_be_unused_is_refused(how: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        drawing.read_how(how)


def test_the_best_is_chosen_beside_the_first_seed(made: Path, model: Pictures, tmp_path: Path) -> None:
    how = {**QUICK, "images": 3, "select": True, "mode": "target_soft_style", "preference_weights": [1, 2]}
    lines: list[str] = []
    model.draw_file(samples_of(made), tmp_path / "out", {**how, "keywords": "auto"}, said(lines))
    supplied, asked = (info_of(tmp_path / "out" / f"sample_{number:04}") for number in range(2))
    assert any("preferences supplied: 1 of 2 samples" in line for line in lines)
    assert any("keywords of the sample's own history: 1 of 2 samples" in line for line in lines)
    assert (supplied["keywords_from"], supplied["raw_answer"]) == ("preferences supplied", None)
    assert asked["keywords_from"] == "keywords of the sample's own history"
    assert asked["raw_answer"].startswith("1.")
    assert tuple(asked["keywords"]) == keywords.parse(asked["raw_answer"], cut=True)  # random models never end
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["keywords_from"] == ["keywords of the sample's own history", "preferences supplied"]
    for number, info in enumerate((supplied, asked)):
        folder = tmp_path / "out" / f"sample_{number:04}"
        assert info["num_generated"] == len(list(folder.glob("gen_*.jpg"))) == 6
        z = [one["z"] for one in info["scores"]]
        assert info["chosen_image"] == int(np.argmax(z))
        assert np.isfinite(z).all()
        assert (folder / "best.jpg").read_bytes() == (folder / f"gen_{info['chosen_image']}.jpg").read_bytes()
        seeds = [picture_seed(42, info["user_id"], info["target_item_id"], image) for image in range(3)]
        assert info["seeds"] == [seed for seed in seeds for _ in range(2)]
        assert info["style_scales"] == [1, 2] * 3
        assert info["scorer"] == meta["scorer"]
        again = model.redraw(folder, batch=1)
        assert [jpeg(one, tmp_path) for one in again] == [
            (folder / f"gen_{image}.jpg").read_bytes() for image in range(6)
        ]
    # Without a choice the first seed draws the same: it is not selected.
    model.draw_file(samples_of(made), tmp_path / "plain", {**QUICK, "mode": "target_soft_style"}, Host())
    pair = [tmp_path / out / "sample_0001" / "gen_0.jpg" for out in ("out", "plain")]
    assert pair[0].read_bytes() == pair[1].read_bytes()
    assert not (tmp_path / "plain" / "sample_0001" / "best.jpg").exists()


def test_info_that_lies_is_found_out(made: Path, model: Pictures, tmp_path: Path) -> None:
    model.draw_file(samples_of(made), tmp_path / "out", {**QUICK, "mode": "soft_only"}, Host())
    folder = tmp_path / "out" / "sample_0000"
    true, info = (folder / "gen_0.jpg").read_bytes(), info_of(folder)
    assert jpeg(model.redraw(folder, batch=1)[0], tmp_path) == true
    for key, value in {"seeds": [7], "mode": "target_soft", "negative_prompt": "a circle"}.items():
        (folder / "info.json").write_text(json.dumps({**info, key: value}))
        assert jpeg(model.redraw(folder, batch=1)[0], tmp_path) != true, key
    (folder / "info.json").write_text(json.dumps({**info, "adapter_digest": "other"}))
    with pytest.raises(CheckpointError, match="were made by another adapter"):
        model.redraw(folder)
    for wrong in ({"seeds": [1]}, {**info, "mode": "other"}, {**info, "seeds": [1, 2]}):
        (folder / "info.json").write_text(json.dumps(wrong))
        with pytest.raises(DataError, match="does not say how its pictures were made"):
            model.redraw(folder)


def test_samplers_seeds_and_negatives_matter(model: Pictures) -> None:
    drawn = {
        name: model.draw(HISTORY, "a square", how={**QUICK, "steps": 3, "scheduler": name})[0]
        for name in ("ddim", "ddpm", "dpmsolver")
    }
    assert differ(drawn["ddim"], drawn["ddpm"]) > 0
    assert differ(drawn["ddim"], drawn["dpmsolver"]) > 0
    again = model.draw(HISTORY, "a square", how={**QUICK, "steps": 3, "scheduler": "ddpm"})[0]
    assert differ(drawn["ddpm"], again) == 0  # the noise on the way has a seed, too
    soft = {**QUICK, "mode": "soft_only"}
    without = [model.draw(HISTORY, "a square", how={**soft, "negative": text})[0] for text in ("", "a red circle")]
    assert differ(*without) > 0
    shared = {**QUICK, "seed_rule": "shared"}
    one, other = (model.draw(HISTORY, "a square", how={**shared, "seed": seed, "images": 2}) for seed in (5, 6))
    assert differ(one[1], other[0]) == 0  # seed + number
    assert picture_seed(5, "a", "b", 1) != picture_seed(5, "b", "b", 1) != picture_seed(5, "b", "a", 1)
    best = model.draw(HISTORY, "a square", "red", {**QUICK, "images": 2, "select": True})
    both = model.draw(HISTORY, "a square", "red", {**QUICK, "images": 2})
    assert len(best) == 1
    assert 0 in [differ(best[0], each) for each in both]


def test_a_killed_drawing_goes_on(made: Path, model: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = {**QUICK, "mode": "keywords", "keywords": "history"}
    asked: list[tuple[str, ...]] = []

    def ask(_: object, histories: list[tuple[str, ...]], *rest: object) -> dict[tuple[str, ...], Answer]:
        asked.extend(histories)
        return {one: Answer(f"1. {one[0]}", False) for one in histories}

    monkeypatch.setattr(pmg_use, "ask", ask)

    def draw(out: Path) -> None:
        model.draw_file(samples_of(made), out, how, Host())

    draw(tmp_path / "whole")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole" / "sample_0001").iterdir()}
    calls = Deadly()
    with on(calls):
        draw(tmp_path / "counted")
    for fatal in range(3, calls.calls, 9):
        out = tmp_path / f"killed-{fatal}"
        if not (child := os.fork()):
            with on(Deadly(fatal, "half")):
                draw(out)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        complete = [path.name for path in out.glob("sample_*")] if out.is_dir() else []
        assert all((out / name / "info.json").is_file() for name in complete)
        stamps = {name: (out / name / "gen_0.jpg").stat().st_mtime_ns for name in complete}
        asked.clear()
        draw(out)
        assert len(asked) == 2 - len(complete)  # the language model is asked about what is missing alone
        assert {path.name for path in out.iterdir()} == {"meta.json", "sample_0000", "sample_0001"}
        assert {path.name: path.read_bytes() for path in (out / "sample_0001").iterdir()} == whole
        assert all((out / name / "gen_0.jpg").stat().st_mtime_ns == stamp for name, stamp in stamps.items())


def test_other_histories_or_words_need_another_folder(made: Path, model: Pictures, tmp_path: Path) -> None:
    how = {**QUICK, "mode": "target_soft_style", "keywords": "off"}
    model.draw_file(samples_of(made), tmp_path / "out", how, Host())
    content = json.loads(samples_of(made).read_text())
    content[0]["history_items_info"][0]["caption"] = "a blue circle"
    other = samples_of(made).with_name("other.json")
    other.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="were made with another histories"):
        model.draw_file(other, tmp_path / "out", how, Host())
    preferences = tmp_path / "styles.json"
    preferences.write_text(json.dumps([{"user": content[1].get("user_id"), "style": "green"}]))
    given = {**how, "keywords": "file", "preferences": str(preferences)}
    model.draw_file(samples_of(made), tmp_path / "file", given, Host())
    assert info_of(tmp_path / "file" / "sample_0001")["styles"] == ["green"]
    preferences.write_text("[]")
    with pytest.raises(DataError, match=r"has no style \(1 of 2 samples have none\); give --preferences"):
        model.draw_file(samples_of(made), tmp_path / "none", given, Host())
    assert not (tmp_path / "none").exists()


def test_a_target_may_be_drawn_from_its_keywords(
    made: Path, model: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, int, str]] = []

    def ask(_: object, given: list[tuple[str, ...]], how: keywords.Asking, *rest: object) -> dict[Any, Answer]:
        asked.extend((one, how.count, how.about) for one in given)
        said = "1. red\n2. blue\n3. round\n4. wool\n5. calm\n6. flat\n7. old"
        return {one: Answer("1." if one == ("a riddle",) else said, False) for one in given}

    monkeypatch.setattr(pmg_use, "ask", ask)
    model.draw_file(samples_of(made), tmp_path / "out", {**QUICK, "target_text": "keywords"}, Host())
    infos = [info_of(tmp_path / "out" / f"sample_{number:04}") for number in range(2)]
    assert asked == [((info["target_caption"],), 10, "target") for info in infos]
    assert [info["target_text"] for info in infos] == ["red, blue, round, wool, calm"] * 2
    folder = tmp_path / "out" / "sample_0000"
    assert jpeg(model.redraw(folder, batch=1)[0], tmp_path) == (folder / "gen_0.jpg").read_bytes()
    drawn = model.draw(HISTORY, "a riddle", how={**QUICK, "target_text": "keywords"})[0]
    assert differ(drawn, model.draw(HISTORY, "a riddle", how=QUICK)[0]) == 0  # no keywords: the caption
    shared = {**QUICK, "seed_rule": "shared"}  # otherwise the seed is the target's
    drawn = model.draw(HISTORY, "a square", how={**shared, "target_text": "keywords"})[0]
    assert differ(drawn, model.draw(HISTORY, "red, blue, round, wool, calm", how=shared)[0]) == 0
    assert differ(drawn, model.draw(HISTORY, "a square", how=shared)[0]) > 0  # negative twin
    with pytest.raises(ConfigError, match="target_text has no effect with mode soft_only"):
        model.draw(HISTORY, "a riddle", how={**QUICK, "target_text": "keywords", "mode": "soft_only"})
    with pytest.raises(ConfigError, match="num_keywords has no effect with mode target_soft"):
        model.draw(HISTORY, "a riddle", how={**QUICK, "num_keywords": 4})


def sensorium_(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["sensorium", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def test_the_command_line_has_every_setting(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {option.name for option in typer.main.get_command(cli.app).commands["generate"].params}  # type: ignore[attr-defined]
    assert set(drawing.DrawConfig.model_fields) - options == {"preference_weights"}  # --weights
    words = ["generate", made / "adapter", "--data", samples_of(made), "--out", tmp_path / "out", "--batch", 4]
    chosen = ["--mode", "target_soft_style", "--weighting", "repeat", "--weights", "1,2", "--steps", 2, "--seed", 3]
    more = ["--select", "--clip", "random:tiny", "--alpha", 0.5, "--keywords", "history", "--num-keywords", 3]
    rule = ["--scheduler", "dpmsolver", "--seed-rule", "shared", "--images", 2, "--negative", "grey"]
    assert sensorium_(monkeypatch, *words, *chosen, *more, *rule) == 0, capsys.readouterr().err
    info = info_of(tmp_path / "out" / "sample_0001")
    assert info["seeds"] == [3, 3, 4, 4]
    assert len(info["keywords"]) <= 3
    style = ", ".join(info["keywords"])
    assert info["styles"] == [style, f"{style}, {style}" if style else ""] * 2
    assert info["negative_prompt"] == "grey"
    assert info["drawing"]["scheduler"] == "dpmsolver"
    one = info["scores"][0]
    halves = [one["target"], *([one["taste"]] if style else [])]
    assert one["z"] == pytest.approx(sum(np.log(max(part, 1e-3)) for part in halves) / len(halves))
    capsys.readouterr()
    assert sensorium_(monkeypatch, *words, "--weights", "one") == 2
    assert "--weights one: expected numbers between commas" in capsys.readouterr().err
    assert sensorium_(monkeypatch, *words, "--preferences", "none.json") == 2
    assert "none.json" in capsys.readouterr().err
