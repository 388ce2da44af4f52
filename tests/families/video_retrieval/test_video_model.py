"""The six models: off is identity, batch mates and padding change nothing, every parameter learns, the losses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from video_rows import FRAMES, build, config, everything, losses, on_paper, randomise, texts, videos

from sensorium.errors import ConfigError
from sensorium.families.video_retrieval import prompters
from sensorium.families.video_retrieval.clip import random_clip
from sensorium.families.video_retrieval.config import KINDS, Kind
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel, VideoFeatures
from sensorium.families.video_retrieval.shape import clip_shape
from sensorium.families.video_retrieval.state import TokenState, key_bias

CLOSE = {"rtol": 0, "atol": 1e-5}  # unit vectors; float32 sums in another order
MERGING: tuple[Kind, ...] = ("tome", "tempme", "unified")
WITHOUT_TIME: tuple[Kind, ...] = ("clip_mean", "lora", "tome")
ALL_OFF = dict.fromkeys(("lora", "merge", "group", "positions", "spatial", "temporal", "protect"), False)


def without(*names: str) -> dict[str, Any]:
    return {"switches": dict.fromkeys(names, False)}


@torch.no_grad()
def outputs(model: UnifiedTempMeSTOPModel, rows: int = 3) -> tuple[Tensor, ...]:
    found = model.encode_video(videos(rows), everything(rows))
    return found.video, found.frames, model.encode_text(*texts(rows))


def same(a: UnifiedTempMeSTOPModel, b: UnifiedTempMeSTOPModel) -> bool:
    return all(torch.equal(x, y) for x, y in zip(outputs(a), outputs(b), strict=True))


# --- off is identity

IDENTITIES: list[tuple[Kind, dict[str, Any], Kind]] = [
    ("lora", without("lora"), "clip_mean"),
    ("tome", without("merge"), "lora"),
    ("tempme", without("merge", "group"), "lora"),
    ("tempme", without("merge", "group", "lora"), "clip_mean"),
    ("tempme", {"switches": ALL_OFF}, "clip_mean"),
    ("stop", without("group", "spatial"), "clip_mean"),
    ("unified", without("spatial", "temporal"), "tempme"),
    ("unified", without("spatial", "temporal", "protect"), "tempme"),
    ("unified", without("lora", "merge", "positions"), "stop"),
    ("unified", {"switches": ALL_OFF}, "clip_mean"),
]


@pytest.mark.parametrize(("kind", "changes", "other"), IDENTITIES, ids=[f"{k} {c}" for k, c, _ in IDENTITIES])
def test_what_is_off_is_not_there(kind: Kind, changes: Mapping[str, Any], other: Kind) -> None:
    assert same(build(kind, changes), build(other))
    assert not same(build(kind), build(other))  # the twin: on, it does something


def test_parts_that_are_not_active_are_not_there() -> None:
    model = build("unified")
    for active, other in (
        ({"tempme"}, "tempme"),
        ({"stop"}, "stop"),
        ((), "clip_mean"),
        (("stop", "tempme"), "unified"),
    ):
        model.active_parts = active
        assert same(model, build(other))
    alone = build("tempme")
    alone.active_parts = {"stop"}
    assert same(alone, build("clip_mean"))
    with pytest.raises(ConfigError, match="there are tempme, stop"):
        model.active_parts = {"lora"}


def test_single_switches() -> None:
    """Nothing to protect, no positions yet, nothing to merge: the same as the switch off, bit for bit."""
    assert same(build("unified", {"protect": 0}), build("unified", without("protect")))
    assert not same(build("unified"), build("unified", without("protect")))
    for name in ("tempme", "unified"):
        zero = {"frame_merge": 0, "cut_cross_pct": 0, "cut_inside_pct": 0}
        assert same(build(name, zero), build(name, without("merge")))
        begun = build(name, begun=True), build(name, without("positions"), begun=True)
        assert same(*begun)
    assert same(build("tome", {"tome_r": 0}), build("lora"))
    assert same(build("unified", without("spatial")), build("unified", {**without("spatial"), "beta": 7.0}))
    assert not same(build("unified"), build("unified", {"beta": 7.0}))


def test_lora_begins_as_nothing() -> None:
    assert same(build("lora", begun=True), build("clip_mean"))


@torch.no_grad()
@pytest.mark.parametrize("kind", MERGING)
def test_sizes_are_conserved(kind: Kind) -> None:
    model = build(kind)
    mask = everything(3)
    mask[1, 5:] = False
    states = model.trace(videos(3), mask)
    for state in states:
        per_clip = state.size.sum(-1)
        frames = mask.unflatten(1, (-1, state.n_cls)).sum(-1)
        assert torch.equal(per_clip, frames * 17.0)
        assert state.source is not None
        held = (
            torch.zeros_like(state.size)
            .flatten(1)
            .scatter_add(1, state.source, mask[:, :, None].expand(-1, -1, 17).flatten(1).float())
        )
        assert torch.equal(held.view_as(state.size), state.size)  # pictures tell the same
    assert states[-1].size.max() > 2
    assert not key_bias(states[0]).any()
    assert key_bias(states[-1]).any()


@torch.no_grad()
def test_a_token_of_size_three_is_seen_as_three_tokens() -> None:
    """Proportional attention, in every model that merges."""
    model = build("tome")
    x = torch.randn(1, 2, 5, 64)
    sizes = torch.tensor([1, 3, 1, 2, 1])
    state = TokenState(x, sizes.float().expand(1, 2, -1), n_cls=1)
    block = model.clip.vision.blocks[0]
    bias = key_bias(state).flatten(0, 1)[:, None, None]
    found = block.attend(block.project(x[0], None), bias)
    several = x[0].repeat_interleave(sizes, dim=1)
    expected = block.attend(block.project(several, None), None)
    torch.testing.assert_close(found.repeat_interleave(sizes, dim=1), expected, **CLOSE)
    assert (block.attend(block.project(x[0], None), None) - found).abs().max() > 1e-3  # the twin


def test_padding_is_no_key_but_where_there_is_nothing_else() -> None:
    size = torch.tensor([[[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    state = TokenState(torch.zeros(1, 2, 4, 64), size, n_cls=2)
    first, second = key_bias(state)[0].tolist()
    assert first == [0.0, -math.inf, pytest.approx(math.log(2)), -math.inf]
    assert second == [0.0] * 4


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_tokens_at_even_places_behind_the_first_cls_are_the_ones_that_go(frames: int) -> None:
    """Slots are not counted."""
    model, patches = build("unified"), torch.randn(1, 1, 10, 64)
    fixed = torch.randn(1, 1, frames + 4, 64)
    state = TokenState(torch.cat([fixed, patches], dim=2), torch.ones(1, 1, frames + 10), frames, n_slot=4)
    gone = model._match(state, patches[0], 4).gone
    assert ((gone + frames) % 2 == 0).all()


@torch.no_grad()
def test_clips_are_matched_before_they_are_told_apart() -> None:
    """However large the positions, they do not decide what is merged where clips are joined; they do later on."""
    without_cuts = {"cut_inside_pct": 0, "frame_merge": 0}
    calm, told = build("tempme", without_cuts), build("tempme", without_cuts)
    for positions in told.tempme.positions.values():
        positions.mul_(1000)
    before, after = (model.trace(videos(2), everything(2)) for model in (calm, told))
    assert torch.equal(before[2].source, after[2].source)
    assert (before[2].x - after[2].x).abs().max() > 1
    assert not torch.equal(before[3].source, after[3].source)


# --- batch mates, padding, state


def mates(model: UnifiedTempMeSTOPModel) -> float:
    """By how much the vector of a video changes with what else is in its batch."""
    with torch.no_grad():
        together = model.encode_video(videos(8), everything(8)).video
        turned = model.encode_video(videos(8).flip(0), everything(8)).video.flip(0)
        alone = torch.cat([model.encode_video(row[None], everything(1)).video for row in videos(8)])
    return max(float((together - other).abs().max()) for other in (turned, alone))


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_does_not_depend_on_its_batch_mates(kind: Kind) -> None:
    model = build(kind)
    assert mates(model) < 1e-5
    assert mates(model.train()) < 1e-5


def test_a_scale_over_the_batch_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative twin."""

    def over_the_batch(values: Tensor, counts: Tensor) -> Tensor:
        del counts
        return (values - values.min()) / (values.max() - values.min())

    monkeypatch.setattr(prompters, "_standardised", over_the_batch)
    assert mates(build("unified")) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_padded_frames_are_not_seen(kind: Kind) -> None:
    model, video, mask = build(kind), videos(4), everything(4)
    mask[1, 5:] = False
    mask[2, :3] = False
    mask[3] = False
    found = model.encode_video(video, mask)
    other = torch.where(mask[:, :, None, None, None], video, 255 - video)
    again = model.encode_video(other, mask)
    assert torch.equal(found.video, again.video)
    assert torch.equal(model.encode_video(video, mask.long()).video, found.video)
    assert found.video.isfinite().all()
    assert not found.video[3].any()
    norms = found.video.norm(dim=-1)
    torch.testing.assert_close(norms[:3], torch.ones(3), **CLOSE)
    shown = model.encode_video(other, everything(4)).video
    assert (shown - found.video)[1:3].abs().amax(1).min() > 1e-4  # the twin: without the mask they are seen
    torch.testing.assert_close(shown[0], found.video[0], **CLOSE)
    holes = torch.where(mask[:, :, None, None, None], video / 255, torch.nan)
    assert torch.equal(model.encode_video(holes, mask).video, model.encode_video(holes.nan_to_num(1), mask).video)


@torch.no_grad()
def test_slots_beside_a_clip_of_padding_count_for_nothing() -> None:
    model, mask = build("unified"), everything(2)
    mask[1, 4:] = False
    state = model.trace(videos(2), mask)[-1]
    assert state.slot_log is not None
    sizes = state.slot_log.exp()[:, 0]
    assert (sizes[0] > 0).all()
    assert not sizes[1].any()  # the last boundary has four frames of padding behind it
    slots = model.encode_video(videos(2), mask).slots
    assert slots is not None
    assert slots[0].norm().item() == pytest.approx(1, abs=1e-5)
    assert not slots[1].any()


@pytest.mark.parametrize("kind", ["stop", "unified"])
def test_padding_gives_no_nan_in_gradients(kind: Kind) -> None:
    model, mask = build(kind, {"loss": {"stop_weight": 1.0}}).train(), everything(3)
    mask[0, 3:] = False
    mask[1] = False
    ids, words = texts(3)
    model(videos(3), mask, ids, words, words)["total_loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_two_forward_passes_may_be_interleaved() -> None:
    """No state of one video is kept where another one finds it."""
    model = build("unified")
    expected = [model.trace(videos(1, seed), everything(1))[-1].x for seed in (0, 1)]
    states = [model._begin(videos(1, seed), everything(1), traced=False) for seed in (0, 1)]
    for step, block in model._blocks():
        states = [model._block(state, step, block) for state in states]
    assert all(torch.equal(state.x, x) for state, x in zip(states, expected, strict=True))


# --- gradients


def silent(model: UnifiedTempMeSTOPModel) -> list[str]:
    """Names of what is trained and gets no gradient, or one that is zero or not finite."""
    model.zero_grad()
    losses(model.train())["total_loss"].backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [n for n, p in trained if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "clip_mean"])
def test_everything_that_is_trained_gets_a_gradient(kind: Kind) -> None:
    model = build(kind)
    assert not silent(model)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    if model.stop.spatial is not None:
        wanted = {f"stop.temporal.{n}.count_{what}" for n in (1, 2, 3) for what in ("slope", "offset")}
        assert wanted | {"stop.spatial.change.weight"} <= names
    frozen = [p for name, p in model.named_parameters() if name.startswith("clip.")]
    assert not any(p.requires_grad or p.grad is not None for p in frozen)


def test_a_hard_choice_would_leave_the_selector_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative twin: what the published selector did."""
    choose = prompters.SpatialPrompter._choose
    monkeypatch.setattr(prompters.SpatialPrompter, "_choose", lambda *given: choose(*given).detach())
    assert silent(build("unified")) == ["stop.spatial.change.weight", "stop.spatial.change.bias"]


def test_full_training_reaches_the_towers() -> None:
    model = build("unified", {"train_clip": True, "loss": {"logit_scale": "learned"}})
    assert not silent(model)
    assert model.clip.temperature.log_scale.grad is not None


def test_groups_follow_the_modules() -> None:
    class Own(UnifiedTempMeSTOPModel):
        def __init__(self) -> None:
            super().__init__(config("unified"))
            self.stopper = nn.Linear(2, 2)

    model = Own()
    found = {name: model.group(name) for name, _ in model.named_parameters()}
    for name, group in found.items():
        assert group == ("own" if name.startswith("stopper") else name.partition(".")[0])
    assert set(found.values()) == {"tempme", "stop", "clip", "own"}


# --- losses


def features(video: Tensor, slots: Tensor | None = None) -> VideoFeatures:
    return VideoFeatures(video, video[:, None], slots)


def test_captions_of_one_video_do_not_push_each_other() -> None:
    """Two rows of the same video: the text of the second comes closer to the video of the first."""
    groups = torch.zeros(2, dtype=torch.int64)

    def loss(angle: float, positives: str, groups: Tensor | None = groups) -> float:
        video = torch.tensor([[1.0, 0.0], [math.cos(0.6), math.sin(0.6)]])  # other frames of it, hence other vectors
        text = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
        model = build("clip_mean", {"loss": {"positives": positives}})
        return float(model.loss_from_features(features(video), text, groups)["total_loss"])

    assert loss(0.4, "multi") < loss(0.6, "multi")
    assert loss(0.4, "diagonal") > loss(0.6, "diagonal")  # the twin
    assert loss(0.4, "multi", None) == loss(0.4, "diagonal")


def test_the_total_is_a_tensor_of_its_own() -> None:
    model = build("unified", {"loss": {"tempme_weight": 1.0, "stop_weight": 1.0}})
    found = losses(model)
    assert list(found) == ["total_loss", "tempme_loss", "stop_loss"]
    parts = {name: value.detach().clone() for name, value in found.items()}
    torch.testing.assert_close(parts["total_loss"], parts["tempme_loss"] + parts["stop_loss"])
    found["total_loss"] += 1
    assert all(torch.equal(found[name], parts[name]) for name in ("tempme_loss", "stop_loss"))
    alone = losses(build("tempme"))
    assert list(alone) == ["total_loss", "tempme_loss"]
    before = alone["tempme_loss"].detach().clone()
    alone["total_loss"] += 1
    assert torch.equal(alone["tempme_loss"], before)


def test_weights_choose_the_losses() -> None:
    both = losses(build("unified", {"loss": {"tempme_weight": 0.5, "stop_weight": 2.0}}))
    torch.testing.assert_close(both["total_loss"], 0.5 * both["tempme_loss"] + 2 * both["stop_loss"])
    assert list(losses(build("unified"))) == ["total_loss", "tempme_loss"]
    model = build("unified", {"loss": {"tempme_weight": 0.0, "stop_weight": 1.0}})
    assert list(losses(model)) == ["total_loss", "stop_loss"]
    model.active_parts = {"tempme"}
    with pytest.raises(ConfigError, match="nothing can be learned"):
        losses(model)


def test_a_class_built_upon_the_model_may_know_no_groups() -> None:
    class Custom(UnifiedTempMeSTOPModel):
        def compute_training_loss(
            self,
            video_tensor: Tensor,
            video_mask: Tensor,
            input_ids: Tensor,
            attention_mask: Tensor,
            token_type_ids: Tensor,
        ) -> dict[str, Tensor]:
            found = super().compute_training_loss(video_tensor, video_mask, input_ids, attention_mask, token_type_ids)
            found["custom_loss"] = found["tempme_loss"] * 3
            found["total_loss"] += found["custom_loss"]
            return found

    torch.manual_seed(0)
    model = Custom(config("unified"))
    randomise(model)
    found = losses(model)
    torch.testing.assert_close(found["total_loss"], 4 * found["tempme_loss"])


# --- order of frames


@torch.no_grad()
def turned(kind: Kind) -> float:
    """By how much a video's vector changes when its frames come in reverse order."""
    model = build(kind)
    found = [model.encode_video(video, everything(3)).video for video in (videos(3), videos(3).flip(1))]
    return float((found[0] - found[1]).abs().amax(1).min())


@pytest.mark.parametrize("kind", KINDS)
def test_only_models_of_time_see_the_order_of_frames(kind: Kind) -> None:
    assert turned(kind) < 1e-5 if kind in WITHOUT_TIME else turned(kind) > 1e-3


# --- precision and compilation


def matched_alike(model: UnifiedTempMeSTOPModel) -> tuple[float, float]:
    """Smallest cosine of vectors in bfloat16 and float32, and the share of tokens that end in the same place."""
    with torch.no_grad():
        exact = model.encode_video(videos(4), everything(4)).video
        places = model.trace(videos(4), everything(4))[-1].source
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.encode_video(videos(4), everything(4)).video
            others = model.trace(videos(4), everything(4))[-1]
    assert rough.dtype == others.size.dtype == torch.float32
    assert places is not None
    assert others.source is not None
    return float((exact * rough).sum(-1).min()), float((places == others.source).float().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_agrees(kind: Kind) -> None:
    cosine, alike = matched_alike(build(kind))
    print(f"{kind}: cosine {cosine:.4f}, {alike:.0%} of the tokens in the same place")
    if kind not in MERGING:
        assert cosine > 1 - 2e-2
        assert alike == 1.0


def test_one_graph_serves_all_batches() -> None:
    """Two blocks hold everything there is: the choice of patches, both merges, slots, a clip of all frames."""
    given = config("unified")
    short = given.model_copy(update={"groups": {1: FRAMES}})
    clip = random_clip(replace(clip_shape(given), layers=2, text_layers=1))
    model, counter = UnifiedTempMeSTOPModel(short, clip=clip).eval(), CompileCounter()
    compiled = torch.compile(model.encode_video, backend=counter, fullgraph=True)
    mask = everything(3)
    for seed in (0, 1):
        torch.testing.assert_close(
            compiled(videos(3, seed), mask).video, model.encode_video(videos(3, seed), mask).video, **CLOSE
        )
        mask = mask.clone()
        mask[0, 5:] = False
    assert counter.frame_count == 1


def shapes(model: Mapping[str, Any]) -> Iterator[tuple[int, ...]]:
    built = on_paper(model)
    side = built.clip.shape.resolution
    video = torch.empty(2, built.frames, 3, side, side, device="meta")
    for state in built.trace(video, torch.empty(2, built.frames, dtype=torch.bool, device="meta")):
        yield tuple(state.x.shape)


def test_sixty_four_frames() -> None:
    found = list(shapes({"clip": "random:b32", "frames": 64}))
    assert found[0] == (2, 64, 50, 768)
    assert found[-4:] == [(2, 16, 99, 768), (2, 4, 232, 768), (2, 1, 567, 768), (2, 1, 512, 768)]


def test_one_frame_is_a_picture() -> None:
    model = build("lora", {"frames": 1})
    found = model.encode_video(videos(2, frames=1), everything(2, 1))
    torch.testing.assert_close(found.video, found.frames[:, 0], **CLOSE)
    assert FRAMES != 1
