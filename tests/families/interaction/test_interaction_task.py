"""What each stage trains, on what, and with which gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sensorium import families
from sensorium.data.items import MODALITIES, DataSet, Item
from sensorium.engine import checkpoint, loop, settings
from sensorium.engine.contract import Batch, Host, Sources
from sensorium.engine.stages import learnable, select
from sensorium.errors import ConfigError, DataError
from sensorium.families.interaction import losses, plan
from sensorium.families.interaction import task as module
from sensorium.families.interaction.data import EvalSource, TrainSource
from sensorium.families.interaction.sources import ALIGN, FULL, UNIMODAL, label_numbers
from sensorium.families.interaction.task import InteractionTask
from sensorium.parts import chunks

FAMILY = families.load("interaction")
QUIET = {"track": {"tensorboard": False}, "evaluate": {"test": False}}
Gradients = dict[str, Tensor]


def config_of(**model: Any) -> settings.RunConfig:
    return settings.resolve(FAMILY, "tiny", {"model": model})


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sources]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield FAMILY.sources(config_of(), Host())


@pytest.fixture
def make(sources: Sources) -> Callable[..., InteractionTask]:
    facts = FAMILY.facts(config_of(), sources)

    def build(parts: int = 1, **model: Any) -> InteractionTask:
        torch.manual_seed(0)
        config = config_of(**model)
        return InteractionTask(config.model, facts, parts)  # type: ignore[arg-type]

    return build


def batch_of(source: TrainSource, rows: int = 8, *, stage: str | None = None, leave_out: str | None = None) -> Batch:
    if stage is not None and stage in (UNIMODAL,):
        alone = source.alone()
        assert alone is not None
        source = alone
    examples = []
    for index in range(rows):
        example = dict(source.example(index, 100 + index))
        if leave_out:
            example.pop(leave_out, None)
        examples.append(example)
    return {**source.collate(examples), "index": torch.arange(rows)}


def train_source(sources: Sources) -> TrainSource:
    assert isinstance(sources.train, TrainSource)
    return sources.train


def gradients(task: nn.Module, batch: Batch) -> tuple[Tensor, Gradients]:
    task.zero_grad()
    torch.manual_seed(5)
    loss = task(batch).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}


def double(batch: Batch) -> Batch:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


def stage_of(name: str) -> Any:
    return next(stage for stage in plan.stages(config_of()) if stage.name == name)


def test_stages_train_what_they_say_and_nothing_else(tmp_path: Path) -> None:
    """Weights before and after each stage of a real run."""
    config = settings.resolve(
        FAMILY, "tiny", QUIET, {"train": {"steps": 40}, "checkpoint": {"every_steps": 2, "keep": 50}}
    )
    loop.train(FAMILY, config, tmp_path / "run", quiet=True)
    facts_of = checkpoint.load(checkpoint.folder_of(tmp_path / "run", 2), "interaction")
    names = set(facts_of.weights)
    ends = {UNIMODAL: (2, 8), ALIGN: (8, 28), FULL: (28, 40)}
    sets = {}
    for stage, (first, last) in ends.items():
        before = checkpoint.load(checkpoint.folder_of(tmp_path / "run", first), "interaction").weights
        after = checkpoint.load(checkpoint.folder_of(tmp_path / "run", last), "interaction").weights
        moved = {name for name in names if not torch.equal(before[name], after[name])}
        task = InteractionTask(config.model, _facts(tmp_path / "run"), 1)  # type: ignore[arg-type]
        sets[stage] = chosen = set(select(learnable(task), stage_of(stage)))
        assert moved == chosen
    assert sets[UNIMODAL] != sets[ALIGN] != sets[FULL]
    assert not any("text" in name for name in sets[UNIMODAL])
    assert not any("words" in name or "fusion" in name or "classifier" in name for name in sets[ALIGN])
    assert {name for name in sets[FULL] if name.startswith("model.")} == {n for n in names if n.startswith("model.")}


def _facts(run: Path) -> Mapping[str, Any]:
    from sensorium.engine import rundir

    facts: Mapping[str, Any] = rundir.read_facts(run)["facts"]
    return facts


def test_every_parameter_of_the_model_learns_in_the_last_stage(
    sources: Sources, make: Callable[..., InteractionTask]
) -> None:
    task = make()
    select(learnable(task), stage_of(FULL))
    _, found = gradients(task.train(), batch_of(train_source(sources), 16))
    assert {n for n, _ in task.named_parameters() if n.startswith("model.")} <= found.keys()
    dead = [name for name, gradient in found.items() if name.startswith("model.") and not gradient.any()]
    assert not dead


def test_sound_learns_from_words(sources: Sources, make: Callable[..., InteractionTask]) -> None:
    task = make()
    task.stage = ALIGN
    select(learnable(task), stage_of(ALIGN))
    batch = batch_of(train_source(sources), leave_out="pixels")
    output = task.train()(batch)
    assert "pixels" not in batch
    assert float(output.logs["align/text-audio"]) > 1.0
    output.loss.backward()
    reached = {n for n, p in task.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"model.audio.trunk.norm.weight", "model.projections.audio.weight"} <= reached
    assert not any("vision" in name for name in reached)


def test_what_is_frozen_has_no_dropout(make: Callable[..., InteractionTask]) -> None:
    task = make(dropout=0.5)
    parameters = learnable(task)
    select(parameters, stage_of(ALIGN))
    task.train()
    assert not task.model.fusion.training
    assert not task.model.text.words.training
    assert task.model.text.trunk.training
    select(parameters, stage_of(FULL))
    assert task.train().model.fusion.training


@pytest.mark.parametrize("leave_out", [None, "mel"])
def test_chunks_have_the_gradient_of_the_whole(
    sources: Sources, make: Callable[..., InteractionTask], leave_out: str | None
) -> None:
    """4 x 8 rows against 32 at once, in float64, temperatures included."""
    batch = double(batch_of(train_source(sources), 32, leave_out=leave_out))
    found = []
    for parts in (1, 4):
        task = make(parts).double()
        task.stage = ALIGN
        found.append(gradients(task.train(), batch))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-10, atol=1e-10)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-9, atol=1e-10, msg=name)
    assert any("temperatures" in name for name in found[0][1])


def test_plain_accumulation_would_be_another_loss(sources: Sources, make: Callable[..., InteractionTask]) -> None:
    """Negative twin: the mean over four batches of eight knows a quarter of the negatives."""
    task = make().double().train()
    task.stage = ALIGN
    batch = double(batch_of(train_source(sources), 32))
    whole = float(task(batch).loss.detach())
    parts = [float(task(chunks.take(batch, rows)).loss.detach()) for rows in torch.arange(32).chunk(4)]
    assert sum(parts) / 4 < 0.9 * whole


def test_chunks_with_dropout_and_checkpointing(
    sources: Sources, make: Callable[..., InteractionTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the same chunks with everything kept; and without the replay of the draws the gradient is wrong."""
    batch = double(batch_of(train_source(sources), 16))

    def kept(represent: Any, rows: Tensor, count: int, *, replay: bool = True) -> dict[str, Tensor]:
        del replay
        parts = [represent(part) for part in rows.chunk(count)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def careless(represent: Any, rows: Tensor, count: int) -> dict[str, Tensor]:
        return chunks.in_chunks(represent, rows, count, replay=False)

    found = {}
    for name, function in (("checkpointed", chunks.in_chunks), ("kept", kept), ("careless", careless)):
        monkeypatch.setattr(module, "in_chunks", function)
        task = make(4, dropout=0.3, use_checkpoint=name == "checkpointed").double()
        task.stage = None
        found[name] = gradients(task.train(), batch)
    torch.testing.assert_close(found["checkpointed"][0], found["kept"][0], rtol=1e-10, atol=1e-10)
    for name, gradient in found["kept"][1].items():
        torch.testing.assert_close(found["checkpointed"][1][name], gradient, rtol=1e-8, atol=1e-10, msg=name)
    worst = max(float((found["careless"][1][n] - g).abs().max()) for n, g in found["kept"][1].items())
    assert worst > 1e-4


def test_without_the_other_losses_the_last_stage_is_contrast(
    sources: Sources, make: Callable[..., InteractionTask]
) -> None:
    batch = batch_of(train_source(sources), 8)
    found = []
    for stage in (ALIGN, FULL):
        task = make(weights={"match": 0.0, "recon": 0.0, "classify": 0.0})
        task.stage = stage
        found.append(gradients(task.train(), batch))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        assert torch.equal(found[1][1][name], gradient), name


def test_the_loss_of_the_last_stage_is_the_weighted_sum(sources: Sources, make: Callable[..., InteractionTask]) -> None:
    task = make(weights={"match": 2.0, "recon": 3.0, "classify": 5.0})
    task.stage = None
    batch = {name: tensor for name, tensor in batch_of(train_source(sources), 8).items() if name != "mel"}
    batch["has"] = batch["has"] & torch.tensor([True, True, False])
    output = task(batch)
    logs = {name: float(value) for name, value in output.logs.items()}
    told = logs["align/text-image"] + 2 * logs["match"] + 3 * logs["recon"] + 5 * logs["classify"]
    assert output.loss.item() == pytest.approx(logs["unimodal/image"] + told, rel=1e-5)


def test_what_is_to_be_guessed_is_not_shown(
    sources: Sources, make: Callable[..., InteractionTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    guessed: list[Mapping[Any, Tensor]] = []
    reconstruction = losses.reconstruction
    monkeypatch.setattr(losses, "reconstruction", lambda g, *rest: (guessed.append(g), reconstruction(g, *rest))[1])
    task = make().eval()
    batch = batch_of(train_source(sources), 4)
    with torch.no_grad():
        task(batch)
        for number, name in enumerate(("ids", "pixels", "mel")):
            task({**batch, name: batch[name].flip(0)})
            same = {m: torch.equal(guessed[0][m], guessed[-1][m]) for m in MODALITIES}
            assert same == {m: place == number for place, m in enumerate(MODALITIES)}


def test_a_batch_without_a_pair_is_an_error(sources: Sources, make: Callable[..., InteractionTask]) -> None:
    alone = train_source(sources).alone()
    assert alone is not None
    task = make()
    task.stage = ALIGN
    pictures = batch_of(alone, 4)
    with pytest.raises(DataError, match="nothing can be aligned"):
        task(pictures)
    task.stage = UNIMODAL
    words = batch_of(train_source(sources), 4)
    words = {name: tensor for name, tensor in words.items() if name in ("ids", "ids_mask", "group", "has", "index")}
    words["has"] = words["has"] & torch.tensor([True, False, False])
    with pytest.raises(DataError, match="neither pictures nor sound"):
        task(words)


def test_a_model_that_tells_nothing_apart_is_at_chance(sources: Sources, make: Callable[..., InteractionTask]) -> None:
    task = make().eval()
    task.stage = ALIGN
    batch = batch_of(train_source(sources), 8)
    values = {name: float(value) for name, value in task(batch).logs.items()}
    assert not module.at_chance(values)
    one = {name: float(value) for name, value in task(chunks.take(batch, torch.tensor([0]))).logs.items()}
    assert module.at_chance(one)
    with torch.no_grad():
        for projection in task.model.projections.values():
            projection.weight.zero_()
    assert module.at_chance({name: float(value) for name, value in task(batch).logs.items()})
    assert not module.at_chance({"unimodal/image": 0.0})


def test_captions_of_one_picture_are_no_negatives(make: Callable[..., InteractionTask]) -> None:
    torch.manual_seed(0)
    z = {m: nn.functional.normalize(torch.randn(4, 8), dim=1) for m in ("text", "image")}
    has = {m: torch.ones(4, dtype=torch.bool) for m in z}
    seen: list[Tensor] = []

    def judge(rows: Mapping[Any, Tensor | None]) -> Tensor:
        seen.extend(number for number in rows.values() if number is not None)
        return torch.zeros(4)

    groups = torch.tensor([0, 0, 1, 1])
    for _ in range(30):
        losses.matching(z, has, groups, judge, sample=True)  # type: ignore[arg-type]
    assert all((groups[other] != groups).all() for other in seen)
    equal = losses.matching(z, has, torch.zeros(4, dtype=torch.long), judge, sample=True)  # type: ignore[arg-type]
    assert not equal.used.any()


def test_no_test_picture_is_trained_on(sources: Sources) -> None:
    assert isinstance(sources.test, EvalSource)
    tested = {row.content for row in sources.test.rows if row.modality != "text"}
    for source in (sources.train, *sources.stages.values()):
        assert isinstance(source, TrainSource)
        trained = {path for sample in source.samples for path in (sample.image, sample.audio) if path}
        assert trained
        assert not trained & tested
        groups = {sample.group for sample in source.samples}
        assert not groups & {row.group for row in sources.test.rows}


def test_targets_are_those_of_the_model_before_the_stage_and_are_encoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings.resolve(FAMILY, "tiny", QUIET, {"train": {"steps": 20}, "checkpoint": {"every_steps": 16}})
    passes: list[int] = []
    encode = plan.TowerEncoder.encode

    def counted(self: Any, given: Any) -> Any:
        passes.append(len(given))
        return encode(self, given)

    monkeypatch.setattr(plan.TowerEncoder, "encode", counted)
    held: dict[str, Any] = {}
    begin_stage = FAMILY.begin_stage
    assert begin_stage is not None

    def noted(task: nn.Module, begin: Any) -> None:
        begin_stage(task, begin)
        held[begin.stage.name] = (copy.deepcopy(task), begin.shared)

    loop.train(replace(FAMILY, begin_stage=noted), config, tmp_path / "run", quiet=True)
    task, source = held[FULL]
    assert sum(passes) == 3 * 288
    example = source.example(5, 1)
    sample = source.samples[5]
    picture = plan.middle(source.media.pictures.load(sample.image, source.media.keys[sample.image]), source.media.side)
    pixels = torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())[None]
    with torch.no_grad():
        live = task.eval().model.embed("image", task.model.encode_image(module.normalised(task.model, pixels)).pooled)[
            0
        ]
    torch.testing.assert_close(torch.from_numpy(example["target_image"]), live, atol=2e-3, rtol=0)  # kept in float16
    assert task.target_means.keys() == set(MODALITIES)
    passes.clear()
    checkpoint.drop(checkpoint.folder_of(tmp_path / "run", 20))
    (tmp_path / "run/summary.json").unlink()
    loop.train(FAMILY, config, tmp_path / "run", resume=True, quiet=True)
    assert passes == []


def test_labels_keep_the_numbers_of_their_data_set() -> None:
    """The rows of the classifier: COCO's categories by id, whatever comes first in the alphabet."""

    def of(name: str, labels: tuple[str, ...], names: tuple[str, ...] = ()) -> DataSet:
        return DataSet(name, Path(), "", (Item(name, name, "train", "x", labels=labels),), (), names)

    sets = [of("stamps", ("cat", "ant")), of("coco", ("bird",), ("person", "stop sign", "bird"))]
    found = label_numbers(sets, 5)
    assert found == {"person": 0, "stop sign": 1, "bird": 2, "ant": 3, "cat": 4}


def test_too_many_labels_are_refused(tmp_path: Path) -> None:
    config = settings.resolve(FAMILY, "tiny", {"model": {"num_classes": 2}})
    with pytest.raises(ConfigError, match=r"labels; model\.num_classes is 2"):
        FAMILY.sources(config, Host())


def test_no_data_set_is_said(tmp_path: Path) -> None:
    config = settings.resolve(FAMILY, "tiny")
    empty = config.model_copy(update={"data": type(config.data)()})
    with pytest.raises(ConfigError, match=r"no data set is named: set data\.sets"):
        FAMILY.sources(empty, Host())


def test_a_teacher_takes_the_place_of_hidden_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teachers = {"text": "random:text?width=32&layers=1", "image": "random:vision?width=32&layers=1"}
    config = settings.resolve(FAMILY, "tiny", {"data": {"teachers": teachers}})
    found = FAMILY.sources(config, Host())
    facts = FAMILY.facts(config, found)
    assert facts["teachers"].keys() == {"text", "image"}
    task = InteractionTask(config.model, facts, 1)  # type: ignore[arg-type]
    patterns = {stage.name: stage.trainable for stage in FAMILY.stages(config)}
    assert "distil.*" in patterns[UNIMODAL]
    assert "distil.*" not in patterns[FULL]
    alone = found.stages[UNIMODAL]
    assert isinstance(alone, TrainSource)
    pictures = [row for row, sample in enumerate(alone.samples) if sample.image is not None][:4]
    batch = alone.collate([alone.example(row, row) for row in pictures])
    task.stage = UNIMODAL
    _, reached = gradients(task.train(), batch)
    assert reached["distil.image.weight"].any()
    assert reached["model.vision.trunk.norm.weight"].any()
    assert not any(name.startswith("pretrain.") for name in reached)
    whole = batch_of(train_source(found), 4)
    task.stage = ALIGN
    _, reached = gradients(task.train(), whole)
    assert {"distil.text.weight", "distil.image.weight"} <= reached.keys()
    assert "distil/audio" not in task(whole).logs
    kept = train_source(found)
    sample = kept.samples[3]
    assert sample.image is not None
    stored = kept.teachers["image"].get(kept.media.keys[sample.image]).pooled
    assert np.array_equal(kept.example(3, 1)["teacher_image"], stored.astype(np.float32))
