"""The model of `interaction`: its size to the unit, and what an output may and must depend on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from interaction_rows import EMBEDS, SHAPE, SMALL, build, changed, gradients, make, only, pick, total
from torch import Tensor, nn

from sensorium import config as configuration
from sensorium.data.items import MODALITIES, Modality
from sensorium.errors import ConfigError, DataError
from sensorium.families.interaction.config import SHAPES, ModelConfig, Shape, Size, TextConfig
from sensorium.families.interaction.model import InteractionModel, create_model
from sensorium.parts import attention
from sensorium.parts.attention import look

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order
SIZES = {"tiny": 14_943_980, "small": 35_388_140, "base": 80_025_580, "large": 202_491_116}
WITH_512 = {"tiny": 15_331_820, "small": 35_713_388, "base": 80_025_580, "large": 202_628_588}
CLAIMED = {"tiny": 15e6, "small": 35e6, "base": 80e6, "large": 200e6}  # the guide


def size(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def derived(shape: Shape, embed_dim: int | None) -> dict[str, int]:
    """The numbers of parameters, by part, as arithmetic."""
    d, e = shape.width, shape.word_width
    block = (4 * d * d + 4 * d) + (8 * d * d + 5 * d) + 4 * d
    fused = embed_dim or d
    return {
        "vision": 769 * d + 197 * d + d + shape.vision_blocks * block + 2 * d,
        "text": 30522 * e + (e * d + d if e < d else 0) + 128 * d + shape.text_blocks * block + 2 * d,
        "audio": (240 * d + d) + (3 * d * d + d) + shape.audio_blocks * block + 2 * d,
        "fusion": (shape.latents + 3) * d + shape.fusion_layers * (4 * d * d + 6 * d + block) + 2 * d,
        "heads": 3 * 256 * d + (fused * 1000 + 1000) + (fused + 1) + 3,
        "widen": d * fused + fused if fused != d else 0,
    }


@pytest.mark.parametrize("embed_dim", [None, 512])
@pytest.mark.parametrize("name", SIZES)
def test_every_size_has_its_parameters_to_the_unit(name: Size, embed_dim: int | None) -> None:
    with torch.device("meta"):
        model = create_model(name, embed_dim=embed_dim)
    found = {part: size(model.get_submodule(part)) for part in ("vision", "text", "audio", "fusion", "widen")}
    found["heads"] = size(model.projections, model.classifier, model.match, model.temperatures)
    assert found == derived(SHAPES[name], embed_dim)
    assert size(model) == sum(found.values()) == (SIZES if embed_dim is None else WITH_512)[name]
    assert size(model) == pytest.approx(CLAIMED[name], rel=0.03)


def test_the_parts_of_base_are_those_of_the_table() -> None:
    """In millions, two digits, as they were published beside the totals."""
    parts = derived(SHAPES["base"], None)
    assert {name: round(number / 1e6, 2) for name, number in parts.items() if number} == {
        "vision": 25.72,
        "text": 28.30,
        "audio": 16.67,
        "fusion": 8.43,
        "heads": 0.91,
    }


def test_configuration_is_checked_across_fields() -> None:
    for content, message in (
        ({"size": "custom"}, "custom needs it"),
        ({"shape": {}}, "belongs to model.size custom"),
        ({"size": "custom", "shape": {"width": 100, "heads": 3}}, "multiple of heads"),
        ({"size": "custom", "shape": {"word_width": 300}}, "word_width must not be above width"),
        ({"image_size": 100}, r"multiple of model\.patch"),
        ({"text": {"word_vectors": "none"}}, "set tokenizer to learn"),
        ({"text": {"tokenizer": "learn"}}, "belong to the words of their own tokenizer"),
        ({"size": "huge"}, "'tiny', 'small', 'base', 'large'"),
    ):
        with pytest.raises(ConfigError, match=message):
            configuration.build(ModelConfig, content)
    with pytest.raises(ConfigError, match="'tiny', 'small', 'base', 'large'"):
        create_model("huge")
    assert configuration.build(ModelConfig, {"text": {"word_vectors": "none", "tokenizer": "learn"}}).text == (
        TextConfig(word_vectors="none", tokenizer="learn")
    )


def test_the_module_imports_nothing_heavy() -> None:
    """Beside a script named datasets.py, transformers would import that one instead of the package it means."""
    program = (
        "import sys, sensorium.families.interaction.model; "
        "print({'transformers', 'accelerate', 'datasets'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- what an embedding must not depend on


@torch.no_grad()
def leaks(model: InteractionModel) -> Iterator[str]:
    """Embeddings that change, by a single bit, when another modality is changed, removed, or marked as absent."""
    rows, others = make(), make(seed=1)
    before = model(**rows)
    for modality, name in EMBEDS.items():
        for other in (m for m in MODALITIES if m != modality):
            absent = torch.ones(6, 3, dtype=torch.bool)
            absent[:, MODALITIES.index(other)] = False
            kept = [m for m in MODALITIES if m != other]
            for change, after in (
                ("changed", model(**{**rows, **only(others, other)})),
                ("removed", model(**only(rows, *kept))),
                ("absent", model(**rows, present=absent)),
            ):
                if not after[name].equal(before[name]):
                    yield f"{modality}: {other} {change}"


def test_no_modality_leaks_into_another() -> None:
    assert list(leaks(build())) == []


def test_the_leak_test_finds_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings of what was fused."""
    honest = InteractionModel.forward

    def leaky(model: InteractionModel, **inputs: Tensor) -> dict[str, Tensor | None]:
        outputs = honest(model, **inputs)
        return {**outputs, "text_embeds": model.embed("text", outputs["fused_features"])}

    monkeypatch.setattr(InteractionModel, "forward", leaky)
    assert "text: image removed" in list(leaks(build()))


# --- rows, padding, subsets


def differences(a: dict[str, Tensor | None], b: dict[str, Tensor | None]) -> float:
    """The largest, over outputs that both have."""
    pairs = [(a[name], b[name]) for name in a if a[name] is not None and b[name] is not None]
    return max(float((x - y).detach().abs().max()) for x, y in pairs)


@torch.no_grad()
def test_a_row_depends_on_itself_alone() -> None:
    model, rows = build(), make(8)
    order = [5, 2, 7, 0, 1, 3, 6, 4]
    whole, shuffled, few = model(**rows), model(**pick(rows, order)), model(**pick(rows, [5, 2]))
    for name, x in whole.items():
        torch.testing.assert_close(shuffled[name], x[order], **CLOSE)
        torch.testing.assert_close(few[name], x[[5, 2]], **CLOSE)
        assert (x[5] - x[2]).abs().max() > 1e-3, name


def padded(rows: dict[str, Tensor], fill: float) -> dict[str, Tensor]:
    """Two more tokens and nine more frames of padding, and something else in all of it."""
    ids, audio = (nn.functional.pad(rows["input_ids"], (0, 2)), nn.functional.pad(rows["audio"], (0, 0, 0, 9)))
    words = nn.functional.pad(rows["attention_mask"], (0, 2))
    frames = nn.functional.pad(rows["audio_mask"], (0, 9))
    return {
        "images": rows["images"],
        "input_ids": ids.masked_fill(words == 0, 9),
        "attention_mask": words,
        "audio": audio.masked_fill(~frames[..., None], fill),
        "audio_mask": frames,
    }


@pytest.mark.parametrize("fill", [7.0, float("nan")])
def test_padding_changes_nothing(fill: float) -> None:
    """In training too: dropout draws for channels, not for tokens, so not even the length of the padding shows."""
    model, rows = build(changed(dropout=0.3)), make()
    longer = padded(rows, fill)
    before, after = gradients(model, rows), gradients(model, longer)
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-4, atol=1e-4, msg=name)
    model.eval()
    with torch.no_grad():
        assert differences(model(**longer), model(**rows)) < 1e-5


@torch.no_grad()
def test_padding_that_is_not_masked_does_change_something() -> None:
    """The negative twin, modality by modality."""
    model, rows = build(), make()
    longer = padded(rows, 7.0)
    for name in ("attention_mask", "audio_mask"):
        seen = {**longer, name: torch.ones_like(longer[name])}
        assert differences(model(**seen), model(**rows)) > 1e-2


SUBSETS: list[tuple[Modality, ...]] = [
    ("text",),
    ("image",),
    ("audio",),
    ("text", "image"),
    ("text", "audio"),
    ("image", "audio"),
]


@pytest.mark.parametrize("kept", SUBSETS, ids="-".join)
def test_absent_by_none_and_by_present_are_the_same(kept: tuple[Modality, ...]) -> None:
    model, rows = build(), make()
    present = torch.tensor([[m in kept for m in MODALITIES]] * 6)
    rubbish = {name: tensor.clone() for name, tensor in rows.items()}
    for name, fill in (("images", float("nan")), ("audio", float("inf")), ("input_ids", -100)):
        modality = {"images": "image", "audio": "audio", "input_ids": "text"}[name]
        if modality not in kept:
            rubbish[name].fill_(fill)
    by_none, by_present = model(**only(rows, *kept)), model(**rubbish, present=present)
    assert differences(by_none, by_present) < 1e-5
    for modality, name in EMBEDS.items():
        assert (by_none[name] is None) == (modality not in kept)
        lengths = by_present[name].norm(dim=-1)
        torch.testing.assert_close(lengths, torch.full((6,), float(modality in kept)))
    with torch.no_grad():
        assert differences({"fused_features": model(**rows)["fused_features"]}, by_none) > 1e-3
    none, there = gradients(model, only(rows, *kept)), gradients(model, {**rubbish, "present": present})
    for name, gradient in there.items():
        expected = none.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4, msg=name)


def test_rows_may_lack_different_modalities() -> None:
    model, rows = build(), make(4)
    present = torch.tensor([[True, True, False], [False, True, True], [True, True, True], [False, False, False]])
    outputs = model(**rows, present=present)
    kept: tuple[tuple[Modality, ...], ...] = (("text", "image"), ("image", "audio"), MODALITIES)
    for row, modalities in enumerate(kept):
        alone = model(**only(pick(rows, [row]), *modalities))
        torch.testing.assert_close(outputs["fused_features"][row], alone["fused_features"][0], **CLOSE)
        for modality in modalities:
            torch.testing.assert_close(outputs[EMBEDS[modality]][row], alone[EMBEDS[modality]][0], **CLOSE)
    assert not outputs["audio_embeds"][0].any()
    assert all(x.isfinite().all() for x in outputs.values())  # the row that has nothing, too
    found = gradients(model, {**rows, "present": present})
    assert all(gradient.isfinite().all() for gradient in found.values())


@torch.no_grad()
def test_no_attention_is_asked_over_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a softmax over no key gives differs between kernels: zeros, a mean or NaN."""
    smallest, unmasked = [], []

    def watched(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, chunk: int | None) -> Tensor:
        (unmasked if mask is None else smallest).append(k.shape[2] if mask is None else int(mask.sum(dim=1).min()))
        return look(q, k, v, mask, chunk)

    monkeypatch.setattr(attention, "look", watched)
    present = torch.tensor([[True, True, False], [False, True, True], [True, False, True], [False, False, False]])
    build()(**make(4), present=present)
    blocks = SHAPE.vision_blocks + SHAPE.text_blocks + SHAPE.audio_blocks + 2 * SHAPE.fusion_layers
    assert len(smallest) == blocks - SHAPE.fusion_layers
    assert min(smallest) > 0
    assert unmasked == [SHAPE.latents] * SHAPE.fusion_layers  # latents among themselves


@torch.no_grad()
def test_one_projection_of_the_tokens_serves_any_subset_and_pairing() -> None:
    model, rows = build(changed(embed_dim=24)), make()
    encodings = {
        "image": model.encode_image(rows["images"]),
        "text": model.encode_text(rows["input_ids"], rows["attention_mask"]),
        "audio": model.encode_audio(rows["audio"], rows["audio_mask"]),
    }
    keys = model.fusion.keys(encodings)
    torch.testing.assert_close(model.fuse(encodings), model(**rows)["fused_features"], **CLOSE)
    pair = model(**only(rows, "text", "audio"))["fused_features"]
    torch.testing.assert_close(model.read(model.fusion({m: keys[m] for m in ("audio", "text")})), pair, **CLOSE)
    other, keep = torch.tensor([3, 0, 5, 1, 2, 4]), torch.ones(6, dtype=torch.bool)
    crossed = {"text": keys["text"], "image": [layer.take(other, keep) for layer in keys["image"]]}
    wrong = model(**{**only(rows, "text"), "images": rows["images"][other]})["fused_features"]
    torch.testing.assert_close(model.read(model.fusion(crossed)), wrong, **CLOSE)
    assert wrong.shape == (6, 24)


# --- gradients


def test_every_parameter_gets_a_gradient() -> None:
    model = build(changed(embed_dim=24))
    loss = total(model(**make())) + sum(part.scale() for part in model.temperatures.values())
    loss.backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_an_output_that_is_not_used_leaves_parameters_without_gradient() -> None:
    """The negative twin."""
    model = build()
    outputs = {name: x for name, x in model(**make()).items() if name != "match_logits"}
    total(outputs).backward()
    dead = {name for name, p in model.named_parameters() if p.grad is None}
    assert dead == {"match.weight", "match.bias", *(f"temperatures.{name}.log_scale" for name in model.temperatures)}


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_gives_finite_gradients_and_nearly_the_same(precision: torch.dtype) -> None:
    model, rows = build(changed(use_checkpoint=True, attention_chunk=3)), make()
    right = model(**rows)
    present = torch.ones(6, 3, dtype=torch.bool)
    present[1, 2] = present[2, 0] = False
    with torch.autocast("cpu", precision):
        outputs = model(**rows)
        loss = total(model(**rows, present=present))
    loss.backward()
    for name in ("fused_features", *EMBEDS.values()):
        assert outputs[name].dtype == (torch.float32)
        # 2**-8 is the precision of bf16; a few layers add up
        torch.testing.assert_close(outputs[name], right[name], rtol=0.1, atol=0.1)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


# --- sound and pictures


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 9, 3000])
@torch.no_grad()
def test_sound_of_any_length_has_a_token_for_four_frames(frames: int) -> None:
    model, half = build(), (frames + 1) // 2
    encoding = model.encode_audio(torch.randn(1, frames, 8))
    assert encoding.tokens.shape == (1, (half + 1) // 2, 32)
    assert encoding.mask.all()
    masked = model.encode_audio(torch.randn(1, frames + 6, 8), torch.arange(frames + 6)[None] < frames)
    assert int(masked.mask.sum()) == (half + 1) // 2


@torch.no_grad()
def test_masked_pretraining_sees_the_kept_patches_and_no_other() -> None:
    model, images = build(), make()["images"]
    everything = model.vision(images, kept_BP=torch.arange(16).expand(6, 16))
    torch.testing.assert_close(everything.tokens, model.vision(images).tokens, **CLOSE)
    kept = torch.tensor([[14, 3, 6, 9]] * 6)
    few = model.vision(images, kept_BP=kept)
    assert few.tokens.shape == (6, 5, 32)
    altered = images.clone()
    altered[:, :, :8, :8] = 5.0  # patch 0
    assert model.vision(altered, kept_BP=kept).tokens.equal(few.tokens)
    altered[:, :, 24:, 16:24] = 5.0  # patch 14
    assert not model.vision(altered, kept_BP=kept).tokens.equal(few.tokens)


def bad_inputs() -> Iterator[tuple[dict[str, Tensor], str]]:
    rows = make()
    long = torch.zeros(6, 13, dtype=torch.long)
    yield {"input_ids": long}, r"shape \[6, 13\]; this model reads \[B, L\] with L from 1 to 12 \(model\.max_tokens\)"
    yield {"input_ids": long[:, :0]}, "from 1 to 12"
    yield {"input_ids": long[0, :3]}, "from 1 to 12"
    yield {"images": torch.zeros(6, 3, 32, 24)}, r"shape \[6, 3, 32, 24\]; this model reads \[B, 3, 32, 32\]"
    yield {"audio": torch.zeros(6, 8, 27)}, r"reads \[B, T, 8\]: time before bands"
    yield {"audio": torch.zeros(6, 0, 8)}, "T >= 1"
    yield {"audio": rows["audio"], "audio_mask": rows["audio_mask"][:, 1:]}, r"mask of shape \[6, 26\] for \[6, 27, 8\]"
    yield {**rows, "images": rows["images"][:5]}, "tensors of 5 and 6 rows"
    yield {**rows, "present": torch.ones(1, 3)}, "tensors of 1 and 6 rows"
    yield {**rows, "present": torch.ones(6, 2)}, r"present has shape \[6, 2\]"
    yield {}, "at least one of images, input_ids and audio"


@pytest.mark.parametrize(("rows", "message"), list(bad_inputs()))
def test_what_the_model_does_not_read_is_said(rows: dict[str, Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build()(**rows)


@torch.no_grad()
def test_masks_may_be_left_out() -> None:
    model, rows = build().eval(), make()
    whole = {"attention_mask": torch.ones(6, 10), "audio_mask": torch.ones(6, 27), "present": torch.ones(6, 3)}
    bare = {name: rows[name] for name in ("images", "input_ids", "audio")}
    assert differences(model(**bare), model(**bare, **whole)) == 0


@pytest.mark.parametrize("mend", [lambda norm: None, lambda norm: norm.weight[::2].add_(0.5)], ids=["same", "moved"])
@torch.no_grad()
def test_every_norm_has_an_effect(mend: Callable[[nn.LayerNorm], object]) -> None:
    model, rows = build(), make()
    before = model(**rows)
    norms = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.LayerNorm)]
    assert len(norms) == 2 * (2 + 1 + 2) + 3 + 2 * 3 + 1  # blocks, towers, fusion layers, fusion
    for name, norm in norms:
        kept = norm.weight.clone()
        moved = mend(norm) is not None
        assert (differences(model(**rows), before) > 1e-4) == moved, name
        norm.weight.copy_(kept)


def test_dropout_is_for_training_only() -> None:
    model, rows = build(changed(dropout=0.5)), make()
    with torch.no_grad():
        assert differences(model(**rows), model(**rows)) > 1e-3
        model.eval()
        assert differences(model(**rows), model(**rows)) == 0


def test_the_defaults_are_the_guides() -> None:
    config = ModelConfig()
    assert (config.size, config.image_size, config.patch, config.max_tokens, config.vocab) == (
        "base",
        224,
        16,
        128,
        30522,
    )
    assert (config.mel_bands, config.num_classes, config.embed_dim, config.dropout) == (80, 1000, None, 0.1)
    assert config.fused_width == 512
    assert configuration.build(ModelConfig, configuration.dump(SMALL)) == SMALL
