"""Batches of all kinds of samples at once, broken samples, and what the towers learn from by themselves."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import published_trees as trees_of
import pytest
import torch

import sensorium
from sensorium import families
from sensorium.data import features, readers
from sensorium.data.manage import write_tree
from sensorium.engine import checkpoint, loop, settings
from sensorium.engine.contract import Host, Sources
from sensorium.errors import CheckpointError, ConfigError, DataError
from sensorium.families.interaction.data import DataConfig, EvalSource, TrainSource
from sensorium.families.interaction.evaluator import InteractionEvaluator
from sensorium.families.interaction.sources import ALIGN, UNIMODAL
from sensorium.families.interaction.task import InteractionTask

FAMILY = families.load("interaction")
QUIET = {"track": {"tensorboard": False}, "evaluate": {"test": False}}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory, cache: None) -> dict[str, Path]:
    """128 captioned pictures as COCO has them, 128 captioned sounds as Clotho has them."""
    folder = tmp_path_factory.mktemp("data")
    dataset = readers.read("synthetic", options={"variants": 1})
    for form in ("coco", "clotho"):
        write_tree(dataset, folder / form, form, copy=True)
    return {form: folder / form for form in ("coco", "clotho")}


def changes(roots: dict[str, Path], **further: Any) -> dict[str, Any]:
    sets: dict[str, Any] = {name: {"reader": name, "root": str(root)} for name, root in roots.items()}
    return {**QUIET, **further, "data": {"sets": {"shapes": None, **sets}, **further.get("data", {})}}


def of(roots: dict[str, Path], **further: Any) -> tuple[settings.RunConfig, Sources]:
    config = settings.resolve(FAMILY, "tiny", changes(roots, **further))
    return config, FAMILY.sources(config, Host())


def task_of(config: settings.RunConfig, found: Sources, stage: str | None = None) -> InteractionTask:
    torch.manual_seed(0)
    task = InteractionTask(config.model, FAMILY.facts(config, found), 1)  # type: ignore[arg-type]
    task.stage = stage
    return task


def train_of(found: Sources) -> TrainSource:
    assert isinstance(found.train, TrainSource)
    return found.train


def loss_and_gradient(task: InteractionTask, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    output = task.train()(batch)
    output.loss.backward()
    return output.loss.detach(), {n: p.grad for n, p in task.named_parameters() if p.grad is not None and p.grad.any()}


# --- steps of all kinds of samples


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_a_mixed_step_has_all_modalities_and_the_loss_of_those_that_are_there(
    roots: dict[str, Path], kind: str
) -> None:
    config, found = of(roots, data={"batches": "mixed"})
    source = train_of(found)
    assert source.mix is None
    rows = [n for n, sample in enumerate(source.samples) if (sample.image is not None) == (kind == "image")][:6]
    batch = source.collate([source.example(n, n) for n in rows])
    assert {"ids", "pixels", "mel"} <= batch.keys()
    absent = {"image": ("mel", "mel_mask"), "audio": ("pixels", "labels")}[kind]
    assert not any(batch[name].any() for name in absent)
    lean = {name: tensor for name, tensor in batch.items() if name not in absent}
    losses = [loss_and_gradient(task_of(config, found, ALIGN), one) for one in (batch, lean)]
    torch.testing.assert_close(losses[0][0], losses[1][0], atol=1e-6, rtol=0)
    assert losses[0][1].keys() == losses[1][1].keys()
    for name, gradient in losses[0][1].items():
        torch.testing.assert_close(gradient, losses[1][1][name], atol=1e-6, rtol=1e-5, msg=name)


def test_a_step_of_one_kind_holds_no_other_modality(roots: dict[str, Path]) -> None:
    source = train_of(of(roots)[1])
    assert source.mix is not None
    batch = source.collate([source.example(n, n) for n in np.flatnonzero(source.mix.kinds == 0)[:4]])
    assert not {"pixels", "mel"} <= batch.keys()


def test_a_set_of_larger_weight_has_its_turn_more_often(roots: dict[str, Path], tmp_path: Path) -> None:
    """A set's weight is shared out among its kinds of samples by their numbers."""
    shapes = {"reader": "synthetic", "options": {"variants": 1}, "weight": 4.0}
    weights = {"data": {"sets": {"coco": {"weight": 3.0}, "clotho": {"weight": 1.0}, "shapes": shapes}}}
    mix = train_of(FAMILY.sources(settings.resolve(FAMILY, "tiny", changes(roots), weights), Host())).mix
    assert mix is not None
    assert mix.weights == (4.0, 3.0, 1.0)  # the preset's own first
    assert train_of(of(roots)[1]).mix.weights is None  # type: ignore[union-attr]
    judged = {"esc50": {"reader": "esc50", "root": str(trees_of.esc50(tmp_path))}}  # it has no turn, so needs none
    layers = ({"data": {"sets": {**judged, "shapes": None}}}, weights, {"data": {"sets": {"shapes": None}}})
    FAMILY.sources(settings.resolve(FAMILY, "tiny", changes(roots), *layers), Host())
    lacking = {"data": {"sets": {"coco": {"weight": 3.0}}}}
    with pytest.raises(ConfigError, match=r"data\.sets\.clotho\.weight is not given, but others are"):
        FAMILY.sources(settings.resolve(FAMILY, "tiny", changes(roots), lacking), Host())


# --- samples of one modality


def test_what_has_one_modality_is_for_the_first_stage_alone(roots: dict[str, Path]) -> None:
    """Of these speakers one has faces, the others are only heard."""
    config, found = of(roots)
    voices = roots["clotho"].parent / "voices"
    trees_of.voxceleb(voices)
    speakers = {"speakers": {"reader": "voxceleb", "root": str(voices)}}
    said: list[str] = []
    config = settings.resolve(FAMILY, "tiny", changes(roots), {"data": {"sets": {**speakers}}})
    found = FAMILY.sources(config, Host(say=said.append))
    source, alone = train_of(found), found.stages[UNIMODAL]
    assert isinstance(alone, TrainSource)
    assert all(len(sample.modalities) > 1 for sample in source.samples)
    heard = {sample.audio for sample in source.others}
    assert heard
    assert heard <= {sample.audio for sample in alone.samples}
    assert any("have one modality alone, which the first stage is for" in line for line in said)
    assert {"text", "image", "audio"} == set(FAMILY.facts(config, found)["modalities"])


def test_what_is_aligned_with_nothing_is_not_judged(roots: dict[str, Path], tmp_path: Path) -> None:
    trees_of.esc50(tmp_path)
    layer = {"data": {"sets": {"clotho": None, "esc50": {"reader": "esc50", "root": str(tmp_path)}}}}
    said: list[str] = []
    config = settings.resolve(FAMILY, "tiny", changes(roots), layer)
    found = FAMILY.sources(config, Host(say=said.append))
    assert isinstance(found.test, EvalSource)
    assert {row.modality for row in found.test.rows} == {"text", "image"}
    assert any(line.startswith("no recordings beside anything else to train on") for line in said)
    assert FAMILY.facts(config, found)["modalities"] == ["image", "text"]
    only = settings.resolve(FAMILY, "tiny", layer, {"data": {"sets": {"shapes": None}}})
    with pytest.raises(DataError, match="no training samples"):
        FAMILY.sources(only, Host())


def test_pictures_and_sounds_that_nothing_is_said_of_are_not_enough(tmp_path: Path) -> None:
    trees_of.picture(tmp_path / "a.png", 1)
    trees_of.sound(tmp_path / "b.wav", 1)
    lines = [{"id": "a", "image": "a.png", "split": "train"}, {"id": "b", "audio": "b.wav", "split": "train"}]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bare = {"shapes": None, "bare": {"reader": "native", "root": str(tmp_path)}}
    with pytest.raises(DataError, match="every training sample has one modality alone"):
        FAMILY.sources(settings.resolve(FAMILY, "tiny", {"data": {"sets": bare}}), Host())


def test_voices_and_faces_need_no_words(tmp_path: Path) -> None:
    voxceleb = {"speakers": {"reader": "voxceleb", "root": str(trees_of.voxceleb(tmp_path / "voices"))}}
    layers = {**QUIET, "train": {"steps": 8, "batch_size": 4}, "data": {"sets": {"shapes": None, **voxceleb}}}
    config = settings.resolve(FAMILY, "tiny", layers)
    loop.train(FAMILY, config, tmp_path / "run", quiet=True)
    assert sensorium.load(tmp_path / "run").modalities == ("image", "audio")


# --- what the first stage is told


def test_pictures_learn_labels_or_hidden_patches_and_it_is_said(roots: dict[str, Path]) -> None:
    said: list[str] = []
    config = settings.resolve(FAMILY, "tiny", changes(roots))
    found = FAMILY.sources(config, Host(say=said.append))
    assert "stage unimodal: pictures learn from 18 labels" in said
    assert "stage unimodal: recordings learn from hidden stretches" in said
    bare = {"coco": {"options": {"labels": False}}}
    said.clear()
    FAMILY.sources(settings.resolve(FAMILY, "tiny", changes(roots), {"data": {"sets": bare}}), Host(say=said.append))
    assert "stage unimodal: pictures learn from hidden patches" in said
    assert train_of(found).by_labels


def test_labels_of_sounds_teach_no_pictures(roots: dict[str, Path], tmp_path: Path) -> None:
    """The pictures here have none: they learn hidden patches, and not nothing."""
    trees_of.picture(tmp_path / "a.png", 1)
    trees_of.sound(tmp_path / "b.wav", 1)
    lines = [
        {"id": "a", "text": "a thing", "image": "a.png", "split": "train"},
        {"id": "b", "text": "a noise", "audio": "b.wav", "split": "train", "labels": ["noise"]},
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    only = {"shapes": None, "native": {"reader": "native", "root": str(tmp_path)}}
    config = settings.resolve(FAMILY, "tiny", {"data": {"sets": only}})
    found = FAMILY.sources(config, Host())
    alone, task = found.stages[UNIMODAL], task_of(config, found, UNIMODAL)
    assert isinstance(alone, TrainSource)
    assert task.labels == ("noise",)
    pictures = [n for n, sample in enumerate(alone.samples) if sample.image is not None]
    loss, reached = loss_and_gradient(task, alone.collate([alone.example(n, 0) for n in pictures]))
    assert loss > 0.1
    assert any(name.startswith("model.vision.") for name in reached)


def test_where_pictures_learn_labels_those_without_are_left_out(roots: dict[str, Path]) -> None:
    source = train_of(of(roots)[1])
    bare = [n for n, sample in enumerate(source.samples) if sample.image is not None][:7]
    for number in bare:
        source.samples[number] = replace(source.samples[number], labels=())
    alone = source.alone()
    assert alone is not None
    assert sum(sample.image is not None for sample in alone.samples) == 96 - 7
    source.samples = [replace(sample, labels=()) for sample in source.samples]
    alone = source.alone()
    assert alone is not None
    assert sum(sample.image is not None for sample in alone.samples) == 96


def test_the_loss_of_the_first_stage_is_over_the_rows_that_have_one(roots: dict[str, Path]) -> None:
    config, found = of(roots)
    assert isinstance(found.val, EvalSource)
    task = task_of(config, found, UNIMODAL).eval()
    rows = [n for n, row in enumerate(found.val.rows) if row.modality == "image"]
    bare = {n: replace(found.val.rows[n], labels=()) for n in rows[::2]}
    whole, part = (
        loss_of(config, task, source) for source in (only_rows(found.val, rows), only_rows(found.val, rows[1::2]))
    )
    mixed = loss_of(config, task, only_rows(found.val, rows, bare))
    assert mixed == pytest.approx(part, rel=1e-5)
    assert mixed != pytest.approx(whole, rel=1e-5)
    assert math.isnan(loss_of(config, task, only_rows(found.val, rows[::2], bare)))


def only_rows(source: EvalSource, rows: list[int], other: Any = None) -> EvalSource:
    return replace(source, rows=[(other or {}).get(n, source.rows[n]) for n in rows])


def loss_of(config: settings.RunConfig, task: InteractionTask, source: EvalSource) -> float:
    judge = InteractionEvaluator(config)
    with torch.no_grad():
        collected = judge.collect(task, source.collate([source.example(n, 0) for n in range(len(source))]), final=False)
        return judge._loss(collected, source, task)


def test_a_teacher_is_followed_in_the_validation_too(roots: dict[str, Path]) -> None:
    """And not the head that nothing was trained through."""
    config, found = of(roots, data={"teachers": {"image": "random:vision?width=32&layers=1"}})
    assert isinstance(found.val, EvalSource)
    assert isinstance(found.test, EvalSource)
    task = task_of(config, found, UNIMODAL).eval()
    rows = [n for n, row in enumerate(found.val.rows) if row.modality == "image"]
    before = loss_of(config, task, only_rows(found.val, rows))
    with torch.no_grad():
        for parameter in task.pretrain.parameters():
            parameter.add_(1.0)
    assert loss_of(config, task, only_rows(found.val, rows)) == before
    with torch.no_grad():
        for parameter in task.distil.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert loss_of(config, task, only_rows(found.val, rows)) != before
    tested = [n for n, row in enumerate(found.test.rows) if row.modality == "image"]
    assert math.isnan(loss_of(config, task, only_rows(found.test, tested)))  # nobody asked the teacher


def test_a_teacher_that_cannot_be_reached_is_said_before_anything_slow(
    roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "cached", lambda *_: pytest.fail("something was encoded"))
    with pytest.raises(ConfigError, match="audio encoder 'package:nothing'"):
        of(roots, data={"teachers": {"audio": "package:nothing"}})
    with pytest.raises(ConfigError, match=r"data\.teachers\.audio is 'random:audio', but there are no recordings"):
        of({"coco": roots["coco"]}, data={"teachers": {"audio": "random:audio"}})


# --- broken samples


@pytest.mark.parametrize("teachers", [{}, {"image": "random:vision?width=32&layers=1"}])
def test_a_broken_picture_does_not_end_the_last_stage(
    roots: dict[str, Path], tmp_path: Path, teachers: dict[str, str]
) -> None:
    """Neither the targets nor the teachers need what training passes over."""
    coco = tmp_path / "coco"
    shutil.copytree(roots["coco"], coco)
    broken = next(sample.image for sample in train_of(of({"coco": coco})[1]).samples)
    assert broken is not None
    broken.write_bytes(b"no picture")
    layers = changes({"coco": coco}, data={"teachers": teachers}, train={"steps": 20})
    for policy, error in (("raise", DataError), ("skip", None)):
        config = settings.resolve(FAMILY, "tiny", layers, {"loader": {"bad_samples": policy}})
        with pytest.raises(error, match="not a picture") if error else nullcontext():
            loop.train(FAMILY, config, tmp_path / policy, quiet=True)
    assert (tmp_path / "skip/summary.json").exists()


def test_texts_of_any_length_have_targets(roots: dict[str, Path], tmp_path: Path) -> None:
    """Also where the longest text is no multiple of what they are rounded up to."""
    config = settings.resolve(FAMILY, "tiny", changes(roots), {"model": {"max_tokens": 13}, "train": {"steps": 5}})
    loop.train(FAMILY, config, tmp_path / "run", quiet=True)
    assert checkpoint.complete(tmp_path / "run")[0][-1].name == "step_00000005"


# --- splits and indexes


def test_a_picture_of_two_sets_is_trained_on_and_tested_in_neither(roots: dict[str, Path]) -> None:
    """The official split trains on pictures that Karpathy's tests."""
    twice = {"official": {"reader": "coco", "root": str(roots["coco"]), "options": {"split": "official"}}}
    config = settings.resolve(FAMILY, "tiny", changes(roots), {"data": {"sets": twice}})
    with pytest.raises(DataError, match=r"stands in test and in val|stands in val and in test|must not be trained on"):
        FAMILY.sources(config, Host())


def test_null_takes_a_set_of_the_preset_out() -> None:
    config = settings.resolve(FAMILY, "tiny", {"data": {"sets": {"shapes": None, "mine": {"reader": "emoji"}}}})
    assert isinstance(config.data, DataConfig)
    assert list(config.data.sets) == ["mine"]


def test_an_index_of_other_data_is_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    """Its vectors would be those of other words than the model knows."""
    clotho = tmp_path / "clotho"
    shutil.copytree(roots["clotho"], clotho)
    config = settings.resolve(FAMILY, "tiny", changes({"clotho": clotho}, train={"steps": 5}))
    loop.train(FAMILY, config, tmp_path / "run", quiet=True)
    path = clotho / "clotho_captions_development.csv"
    path.write_text(path.read_text().replace("red", "crimson"))
    with pytest.raises(CheckpointError, match=r"not those that it was trained on \(other: vocabulary\)"):
        sensorium.load(tmp_path / "run").search({"text": "a red circle"}, "audio")
    assert not (tmp_path / "run/index").exists()
