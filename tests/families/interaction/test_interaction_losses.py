"""Each loss by hand, what hides from pre-training, and what a visit shows of a sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from interaction_rows import SMALL, build
from torch import Tensor, nn

from sensorium import families
from sensorium.data.items import MODALITIES, Modality
from sensorium.engine import settings
from sensorium.engine.contract import Begin, Host
from sensorium.engine.stages import spans
from sensorium.families.interaction import data, losses
from sensorium.families.interaction.data import EvalSource, TrainSource
from sensorium.families.interaction.losses import PerRow
from sensorium.families.interaction.model import InteractionModel
from sensorium.families.interaction.plan import TowerEncoder
from sensorium.families.interaction.pretrain import HIDDEN_SOUND, Pretraining, _spans
from sensorium.families.interaction.sources import ALIGN, FULL, UNIMODAL
from sensorium.families.interaction.task import InteractionTask, after_step, embed
from sensorium.parts.contrastive import Temperature

FAMILY = families.load("interaction")
EVERYWHERE = torch.ones(4, dtype=torch.bool)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# --- losses


def test_rows_of_one_group_are_no_negatives_of_each_other() -> None:
    """In the loss as the task calls it: two rows of one group have nothing to be told apart from."""
    task = InteractionTask(SMALL, {"labels": [], "teachers": {}, "by_labels": False}, 1).eval()
    task.stage = ALIGN
    torch.manual_seed(0)
    batch = {
        "has": torch.tensor([[True, True, False]] * 2),
        "ids": torch.tensor([[5, 6], [7, 8]]),
        "ids_mask": torch.ones(2, 2, dtype=torch.bool),
        "pixels": torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8),
    }
    with torch.no_grad():
        for parameter in task.model.projections["image"].parameters():
            parameter.copy_(task.model.projections["text"].weight)
        z = embed(task.model, batch)
        logits = z["text"] @ z["image"].T / 0.07
        one, two = (float(task({**batch, "group": torch.tensor(g)}).logs["align/text-image"]) for g in ([3, 3], [3, 4]))
    shares = torch.stack([logits.log_softmax(dim=1), logits.T.log_softmax(dim=1)])
    assert one == pytest.approx(-float(shares.mean()), abs=1e-5)
    assert two == pytest.approx(-float(shares.diagonal(dim1=1, dim2=2).mean()), abs=1e-5)
    assert one != pytest.approx(two, abs=1e-3)


def test_reconstruction_is_told_apart_from_the_mean_of_the_targets() -> None:
    """Whoever answers with the mean has learned nothing, and is told so."""
    targets: dict[Modality, Tensor] = {"text": unit(64, 8) * 0.2 + unit(1, 8, seed=1)}
    mean = targets["text"].mean(dim=0)
    has: dict[Modality, Tensor] = dict.fromkeys(("text", "image"), torch.ones(64, dtype=torch.bool))
    constant = {"text": mean.expand(64, -1)}
    told = losses.reconstruction(constant, targets, {"text": mean}, has)
    assert float(told.values.mean()) == pytest.approx(1.0, abs=0.1)
    right = losses.reconstruction({"text": targets["text"] - mean}, targets, {"text": mean}, has)
    torch.testing.assert_close(right.values, torch.zeros(64), atol=1e-6, rtol=0)
    assert told.used.all()


def test_reconstruction_needs_something_to_guess_from_and_leaves_targets_alone() -> None:
    has: dict[Modality, Tensor] = {
        "text": torch.tensor([True, True, True, False]),
        "image": torch.tensor([True, False, True, False]),
    }
    targets = {m: unit(4, 8, seed=n).requires_grad_() for n, m in enumerate(has)}
    guesses: dict[Modality, Tensor] = {m: unit(4, 8, seed=5).requires_grad_() for m in has}
    found = losses.reconstruction(guesses, targets, {}, has)
    assert found.used.tolist() == [True, False, True, False]
    assert found.values[~found.used].tolist() == [0.0, 0.0]
    found.values.sum().backward()
    assert all(target.grad is None for target in targets.values())
    assert guesses["text"].grad is not None
    assert guesses["text"].grad.any(dim=1).tolist() == [True, False, True, False]


def test_rows_without_a_label_are_not_classified() -> None:
    labels = torch.tensor([[True, False], [False, False]])
    logits = torch.zeros(2, 5, requires_grad=True)
    found = losses.classification(logits, labels)
    assert found.used.tolist() == [True, False]
    torch.testing.assert_close(found.values.detach(), torch.tensor([math.log(2), 0.0]))
    found.values.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 2:].tolist() == [0, 0, 0]  # rows of the classifier that nothing is known of
    assert not logits.grad[1].any()


def test_a_mean_is_over_the_rows_in_use() -> None:
    values = torch.tensor([3.0, 0.0, 5.0])
    assert float(losses.mean_of_used(PerRow(values, torch.tensor([True, False, True])), everywhere=True)) == 4.0
    assert float(losses.mean_of_used(PerRow(values * 0, torch.zeros(3, dtype=torch.bool)), everywhere=True)) == 0.0


def test_wrong_pairs_are_the_most_similar_ones() -> None:
    z: dict[Modality, Tensor] = {"text": torch.eye(4), "image": torch.eye(4)[[0, 1, 2, 3]]}
    z["image"] = torch.tensor([[1.0, 0, 0, 0], [0.9, 0.1, 0, 0], [0, 0, 1, 0], [0, 0, 0.1, 0.9]])
    seen: list[Tensor] = []

    def judge(rows: Any) -> Tensor:
        seen.extend(number for number in rows.values() if number is not None)
        return torch.zeros(4)

    has = dict.fromkeys(z, EVERYWHERE)
    found = losses.matching(z, has, torch.arange(4), judge, sample=False)
    assert seen[0][0] == 1  # looks most like the first text, of those that are not its own
    torch.testing.assert_close(found.values, torch.full((4,), math.log(2)))


def test_no_similarity_is_divided_by_less_than_a_hundredth() -> None:
    task = InteractionTask(SMALL, {"labels": [], "teachers": {}, "by_labels": False}, 1)
    for part in task.model.temperatures.values():
        assert isinstance(part, Temperature)
        part.log_scale.data.fill_(9.0)
    after_step(task, 0)
    assert all(part.scale().item() == pytest.approx(100) for part in task.model.temperatures.values())
    assert all(part.log_scale.item() < 5 for part in task.model.temperatures.values())


# --- what is hidden


def test_hidden_sound_is_not_heard_and_is_what_is_asked_for() -> None:
    model, mask = build(), torch.ones(2, 400, dtype=torch.bool)
    heads = Pretraining(SMALL, 0).double()
    model = model.double()
    sound = torch.randn(2, 400, 8, dtype=torch.float64)
    heard: list[Tensor] = []
    model.audio.first.register_forward_pre_hook(lambda module, given: heard.append(given[0].detach()))
    torch.manual_seed(0)
    told = heads.sound_losses(model, sound, mask)
    silent = (heard[0] == 0).all(dim=1)  # of each frame
    share = silent.double().mean(dim=1)
    assert (share > HIDDEN_SOUND - 0.01).all()
    assert (share < HIDDEN_SOUND + 0.12).all()  # whole spans
    torch.manual_seed(0)
    other = torch.where(silent[..., None], sound.detach() + 1, sound.detach())
    assert not torch.allclose(heads.sound_losses(model, other, mask), told)  # they are what has to be said
    assert heard[1].equal(heard[0])


def test_spans_hide_about_two_thirds_of_what_is_real() -> None:
    real = torch.arange(300)[None] < torch.tensor([[300], [260], [1], [0]])
    torch.manual_seed(0)
    hidden = _spans(real)
    counts = hidden.sum(dim=1).tolist()
    assert 195 <= counts[0] <= 205
    assert 169 <= counts[1] <= 179
    assert counts[2:] == [1, 0]
    assert not (hidden & ~real).any()


# --- stages


def test_rates_fall_from_the_top_of_each_tower_to_its_stem() -> None:
    config = settings.resolve(FAMILY, "guide")
    stages = {stage.name: stage for stage in FAMILY.stages(config)}
    assert {name: stage.share for name, stage in stages.items()} == pytest.approx(
        {UNIMODAL: 0.2, ALIGN: 0.5, FULL: 0.3}
    )
    assert [stage.lr_scale for stage in stages.values()] == [1.0, 1.0, 0.3]
    scales = stages[FULL].lr_scales
    rates = [scales[f"model.vision.trunk.blocks.{number}.*"] for number in reversed(range(8))]
    assert rates[0] == scales["model.vision.trunk.norm.*"] == 1.0
    assert all(below == pytest.approx(0.85 * above) for above, below in pairwise([*rates, scales["model.vision.*"]]))
    assert not any(name.startswith(("model.fusion", "model.projections")) for name in scales)
    trained = stages[ALIGN].trainable
    tops = {name for name in trained if "blocks" in name}
    assert tops == {f"model.{t}.trunk.blocks.{n}.*" for t, top in (("vision", 7), ("audio", 4)) for n in (top, top - 1)}
    assert "model.text.widen.*" not in trained  # base has none
    assert (
        "model.text.widen.*"
        in FAMILY.stages(settings.resolve(FAMILY, "guide", {"model": {"size": "tiny"}}))[1].trainable
    )


def test_a_share_of_nothing_leaves_a_stage_out() -> None:
    shares = {"unimodal": {"share": 0}, "align": {"share": 1.0}, "full": {"share": 0}}
    [stage] = FAMILY.stages(settings.resolve(FAMILY, "tiny", {"model": {"stages": shares}}))
    assert (stage.name, stage.share) == (ALIGN, 1.0)
    [span] = spans([stage], 9)
    assert (span.first, span.end) == (0, 9)


# --- what a visit shows


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TrainSource, EvalSource]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(tmp_path_factory.mktemp("cache")))
        sets = {"shapes": {"options": {"variants": 1}}}
        section = {"sets": sets, "audio_crop_frames": 64, "validation_groups": 5}
        sources = FAMILY.sources(settings.resolve(FAMILY, "tiny", {"data": section}), Host())
        assert isinstance(sources.train, TrainSource)
        assert isinstance(sources.val, EvalSource)
        yield sources.train, sources.val


def test_each_visit_draws_a_caption_a_part_and_a_stretch(found: tuple[TrainSource, EvalSource]) -> None:
    source = found[0]
    sample = source.samples[0]
    source.samples[0] = sample.__class__(
        sample.set, sample.group, sample.image, sample.audio, ("a red one", "small", "circle"), sample.labels
    )
    visits = [source.example(0, seed) for seed in range(40)]
    source.samples[0] = sample
    assert len({tuple(visit["ids"]) for visit in visits}) == 3
    assert len({visit["pixels"].tobytes() for visit in visits}) == 40
    assert {len(visit["mel"]) for visit in visits} == {64}
    assert len({visit["mel"].tobytes() for visit in visits}) > 20
    again = source.example(0, 7)
    assert np.array_equal(again["pixels"], source.example(0, 7)["pixels"])


def test_every_second_part_is_mirrored(found: tuple[TrainSource, EvalSource], monkeypatch: pytest.MonkeyPatch) -> None:
    source, turned = found[0], []
    monkeypatch.setattr(data, "SMALLEST_CROP", 1.0)
    path = source.samples[0].image
    assert path is not None
    for seed in range(60):
        with monkeypatch.context() as patch:
            shown = source.media.picture(path, seed)
            patch.setattr(data, "TURNED", data.Image.Transpose.FLIP_TOP_BOTTOM)
            turned.append(not np.array_equal(shown, source.media.picture(path, seed)))
    assert 15 <= sum(turned) <= 45


def test_an_evaluation_sees_the_whole_sound_and_so_many_groups(found: tuple[TrainSource, EvalSource]) -> None:
    train, val = found
    sounds = val.numbers("audio", 0)
    assert len({val.rows[row].group for row in sounds}) == 5
    assert val.example(int(sounds[0]), 3)["mel"].shape == (120, 16)  # 1.2 s
    whole = np.concatenate([train.media.sound(s.audio, None) for s in train.samples if s.audio])
    np.testing.assert_allclose(whole.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(whole.std(axis=0), 1, atol=0.02)


def test_statistics_are_those_of_the_training_part(found: tuple[TrainSource, EvalSource]) -> None:
    train, val = found
    others = np.concatenate([val.media.sound(row.content, None) for row in val.rows if row.modality == "audio"])  # type: ignore[arg-type]
    assert np.abs(others.mean(axis=0)).max() > 0.05
    assert train.media.mean.shape == (16,)


def test_targets_of_other_weights_are_others(found: tuple[TrainSource, EvalSource]) -> None:
    """Two ends of the second stage share nothing in the cache."""
    config = settings.resolve(FAMILY, "tiny")
    begin = Begin(FAMILY.stages(config)[-1], config, found[0], Host(), dict)
    identities = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = InteractionModel(config.model)  # type: ignore[arg-type]
        identities.append([dict(TowerEncoder(m, model, found[0].media, begin).identity) for m in MODALITIES])
    assert identities[0] == identities[1]
    assert all(one != other for one, other in zip(identities[0], identities[2], strict=True))
