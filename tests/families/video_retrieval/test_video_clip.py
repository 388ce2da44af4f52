"""The towers are CLIP's: parity with transformers on small random models, LoRA, and folders that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from video_rows import build, everything, texts, videos

from sensorium import config as configuration
from sensorium.errors import ConfigError, DataError
from sensorium.families.video_retrieval.clip import PIXEL_MEAN, PIXEL_STD, Clip, open_clip, to_hf
from sensorium.families.video_retrieval.config import ModelConfig
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel
from sensorium.families.video_retrieval.shape import clip_shape, shape_of

CLOSE = {"rtol": 0, "atol": 1e-5}  # unit vectors; float32 sums in another order
EOT = 97
VISION = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "vocab_size": 99,
    "max_position_embeddings": 20,
    "bos_token_id": 98,
    "eos_token_id": EOT,
    "pad_token_id": EOT,
}


def reference(activation: str = "quick_gelu", text: Mapping[str, Any] | None = None) -> CLIPModel:
    """A small CLIP of transformers, with weights large enough for every part to matter."""
    vision = CLIPVisionConfig(**VISION, hidden_act=activation)
    words = CLIPTextConfig(**{**TEXT, **(text or {})}, hidden_act=activation)
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(vision_config=vision.to_dict(), text_config=words.to_dict(), projection_dim=24))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(params=["quick_gelu", "gelu"])
def theirs(request: pytest.FixtureRequest) -> CLIPModel:
    return reference(request.param)


@pytest.fixture
def folder(theirs: CLIPModel, tmp_path: Path) -> Path:
    theirs.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def model_of(folder: Path, changes: Mapping[str, Any]) -> UnifiedTempMeSTOPModel:
    given = {"clip": str(folder), "kind": "clip_mean", "frames": 4, "words": 12, **changes}
    return UnifiedTempMeSTOPModel(configuration.build(ModelConfig, given)).eval()


def pixels(rows: int) -> Tensor:
    return torch.randn(rows, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def sentences() -> tuple[Tensor, Tensor]:
    """Of different lengths; the token of the end also fills up, and beyond it there are others that must not matter."""
    ids = torch.randint(0, 90, (5, 12), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    for row, end in enumerate((3, 11, 7, 1, 5)):
        ids[row, end:] = EOT
        mask[row, end + 1 :] = 0
    return ids, mask


def unit(output: Any) -> Tensor:
    found = output if isinstance(output, Tensor) else output.pooler_output
    return torch.nn.functional.normalize(found, dim=-1)


@torch.no_grad()
def frame_mean(model: CLIPModel, video: Tensor) -> Tensor:
    frames = unit(model.get_image_features(pixel_values=video.flatten(0, 1))).unflatten(0, video.shape[:2])
    return torch.nn.functional.normalize(frames.mean(1), dim=-1)


@torch.no_grad()
def test_both_towers_equal_those_of_transformers(theirs: CLIPModel, folder: Path) -> None:
    model, video = model_of(folder, {}), pixels(3)
    found = model.encode_video(video, everything(3, 4))
    each = unit(theirs.get_image_features(pixel_values=video.flatten(0, 1))).unflatten(0, (3, 4))
    torch.testing.assert_close(found.frames, each, **CLOSE)
    torch.testing.assert_close(found.video, frame_mean(theirs, video), **CLOSE)
    ids, mask = sentences()
    expected = unit(theirs.get_text_features(input_ids=ids, attention_mask=mask))
    torch.testing.assert_close(model.encode_text(ids, mask), expected, **CLOSE)
    assert model.clip.temperature.scale().item() == pytest.approx(theirs.logit_scale.exp().item(), rel=1e-6)


@torch.no_grad()
def test_the_last_position_is_not_the_end_of_a_text(folder: Path) -> None:
    """Negative twin of the text tower: what reads the last token, or another activation, is no CLIP."""
    theirs, (ids, mask) = CLIPModel.from_pretrained(folder).eval(), sentences()
    expected = unit(theirs.get_text_features(input_ids=ids, attention_mask=mask))
    model = model_of(folder, {})
    last = ids.clone()
    last[:, -1] = 90
    model.clip.text.shape = replace(model.clip.shape, eot_id=90)
    assert (model.encode_text(last, mask) - expected).abs().max() > 1e-2
    other = model_of(folder, {})
    for block in other.clip.vision.blocks:
        block.quick = not block.quick
    assert (other.encode_video(pixels(3), everything(3, 4)).video - frame_mean(theirs, pixels(3))).abs().max() > 1e-4


def test_texts_of_old_configurations_end_with_the_last_token() -> None:
    theirs = reference(text={"eos_token_id": 2, "vocab_size": EOT + 1})
    shape = shape_of(theirs.config, "old")
    assert shape.eot_id == EOT


@torch.no_grad()
def test_weights_go_both_ways(theirs: CLIPModel, folder: Path) -> None:
    """All of them, the factor of the cosines too, which is not 100 here."""
    back = to_hf(open_clip(configuration.build(ModelConfig, {"clip": str(folder), "kind": "clip_mean"})))
    assert back["logit_scale"] < 4
    state = theirs.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@torch.no_grad()
def test_bytes_are_normalised_as_clip_wants_them(folder: Path) -> None:
    model, video = model_of(folder, {}), videos(2, frames=4)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    found = model.encode_video(video, everything(2, 4)).video
    torch.testing.assert_close(
        found, model.encode_video((video / 255 - mean) / std, everything(2, 4)).video, rtol=0, atol=1e-6
    )
    assert (found - model.encode_video(video / 255, everything(2, 4)).video).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", ["tempme", "unified"])
def test_folded_lora_gives_the_same_vectors(kind: str) -> None:
    model, video, (ids, mask) = build(kind), videos(2), texts(2)
    before = model.encode_video(video, everything(2)).video, model.encode_text(ids, mask)
    weights = [block.qkv.weight.clone() for block in (*model.clip.vision.blocks, *model.clip.text.blocks)]
    model.fold_lora()
    after = model.encode_video(video, everything(2)).video, model.encode_text(ids, mask)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    model.fold_lora()  # a second time adds nothing
    blocks = (*model.clip.vision.blocks, *model.clip.text.blocks)
    for block, weight in zip(blocks, weights, strict=True):
        q, k, v = (block.qkv.weight - weight).chunk(3)
        assert q.any()
        assert k.any()
        assert v.any()
    other = build(kind)
    other.lora_folded = True  # the twin: left out and not folded
    assert (other.encode_video(video, everything(2)).video - before[0]).abs().max() > 1e-3
    assert (other.encode_text(ids, mask) - before[1]).abs().max() > 1e-3


def broken(folder: Path, name: str) -> None:
    """Make the folder useless in one way."""
    text = (folder / "config.json").read_text()
    if name == "no weights":
        (folder / "model.safetensors").unlink()
    elif name == "other model":
        (folder / "config.json").write_text(text.replace('"model_type": "clip"', '"model_type": "bert"'))
    elif name == "no JSON":
        (folder / "config.json").write_text("{")
    elif name == "activation":
        (folder / "config.json").write_text(text.replace('"quick_gelu"', '"tanh"').replace('"gelu"', '"tanh"'))
    elif name == "depth":
        content = json.loads(text)
        content["vision_config"]["num_hidden_layers"] = 4
        (folder / "config.json").write_text(json.dumps(content))
    else:
        content = json.loads(text)
        content["vision_config"]["patch_size"] = 7
        (folder / "config.json").write_text(json.dumps(content))


BROKEN = {
    "no weights": "cannot be loaded",
    "other model": "type 'bert', not 'clip'",
    "no JSON": "cannot be read",
    "activation": "hidden_act is 'tanh'; allowed are",
    "depth": "16 of its weights are not in",
    "patch": "whole patches",
}


@pytest.mark.parametrize("theirs", ["gelu"], indirect=True)
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_complete_clip_is_refused_in_one_line(name: str, folder: Path) -> None:
    broken(folder, name)
    with pytest.raises(ConfigError, match=BROKEN[name]) as caught:
        model_of(folder, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "someone/some-clip", "/no/such/folder"])
def test_missing_weights_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match="CLIP") as caught:
        UnifiedTempMeSTOPModel(ModelConfig(clip=name))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_published_shapes_need_no_download() -> None:
    shape = clip_shape(ModelConfig())
    assert (shape.patches, shape.layers, shape.eot_id) == (49, 12, 49407)
    with torch.device("meta"):
        clip = Clip(shape)
    assert sum(p.numel() for p in clip.parameters()) == 151_277_313  # as published


def test_random_weights_are_always_the_same_and_leave_other_draws_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a = open_clip(ModelConfig(clip="random:tiny"))
    assert torch.equal(torch.rand(3), expected)
    b = open_clip(ModelConfig(clip="random:tiny"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert all(p.isfinite().all() for p in a.parameters())


def test_wrong_shapes_are_refused() -> None:
    model = build("unified")
    ids, mask = texts(2)
    with pytest.raises(DataError, match=r"\[B, 8, 3, 32, 32\] and \[B, 8\]"):
        model.encode_video(videos(2, frames=9), everything(2, 9))
    with pytest.raises(DataError, match=r"\[B, 8\]"):
        model.encode_video(videos(2), everything(2, 7))
    with pytest.raises(DataError, match="L from 1 to 77"):
        model.encode_text(ids.repeat(1, 5), mask.repeat(1, 5))
    with pytest.raises(DataError, match="their mask"):
        model.encode_text(ids, mask[:, 1:])
