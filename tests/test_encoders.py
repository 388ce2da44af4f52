"""Frozen encoders: equal to the library's own classes, frozen, told apart by their identity, clear when they fail."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sensorium.errors import ConfigError, DataError
from sensorium.parts.encoders import Encoded, EncoderOptions, FrozenEncoder, open_encoder
from sensorium.parts.encoders_audio import pool_frames
from sensorium.parts.encoders_image import ImageEncoder
from sensorium.parts.encoders_text import default_prefix

# The same float32 operations in another order and padding; measured differences stay below 3e-7 here.
TOLERANCE = 1e-6
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "the", "red", "dog", "cat", "house", "runs", "query", ":", "and", "one", "two", "three"]
TEXTS = ["a red dog", "the cat runs", "one two three and the dog and the cat and a red house", "dog"]
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
RANDOM: dict[Any, str] = {"text": "random:text", "image": "random:vision", "audio": "random:audio"}


def opened(modality: Any, spec: str | Path, cache: Path = Path("unused"), **options: Any) -> FrozenEncoder:
    return open_encoder(modality, str(spec), EncoderOptions(**options), cache, "cpu")


def encode(encoder: FrozenEncoder, *samples: Any) -> list[Encoded]:
    return encoder.encode([encoder.prepare(sample) for sample in samples])


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(round(16000 * seconds)).astype(np.float32) * 0.1


def picture(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


SAMPLES: dict[str, list[Any]] = {
    "text": [*TEXTS, "été", "собака", "a" * 200],
    "image": [picture(0), picture(1, (20, 90)), picture(2, (32, 32)), Image.new("RGB", (1, 1))],
    "audio": [noise(0.7), noise(2.5, 1), noise(0.0004), np.zeros(1600, np.float32), noise(1.1, 2)],
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-bert"
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **TINY)).save_pretrained(folder)
    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-clip"
    vision = TINY | {"image_size": 48, "patch_size": 16}
    text = TINY | {"vocab_size": 50, "max_position_embeddings": 16}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)).save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def whisper(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-whisper"
    config = WhisperConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=100,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
        init_std=0.1,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- equal to the library's own classes


def test_text_equals_bert_with_a_masked_mean(bert: Path) -> None:
    model, tokenizer = BertModel.from_pretrained(bert).eval(), BertTokenizer.from_pretrained(bert)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None]
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    pooled = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    for row, result in enumerate(encode(opened("text", bert), *TEXTS)):
        length = int(mask[row].sum())
        assert result.tokens.shape == (length, 32)
        np.testing.assert_allclose(result.tokens, hidden[row, :length], atol=TOLERANCE)
        np.testing.assert_allclose(result.pooled, pooled[row], atol=TOLERANCE)
    unmasked = F.normalize(hidden.mean(1), dim=1)  # the twin: pad tokens do change a plain mean
    assert not np.allclose(unmasked[0], pooled[0], atol=1e-3)


def test_image_equals_clip_and_its_processor(clip: Path) -> None:
    model = CLIPModel.from_pretrained(clip).eval()
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    encoder = opened("image", clip)
    assert (encoder.width, encoder.pooled_width, encoder.has_vector) == (32, 24, True)
    assert not any("text" in name for name in encoder.module.state_dict())
    for sample in (picture(0), picture(1, (300, 100))):
        pixels = processor(images=sample, return_tensors="pt")["pixel_values"]
        prepared = encoder.prepare(sample)
        np.testing.assert_allclose(prepared, pixels[0], atol=TOLERANCE)
        assert not np.allclose(prepared, processor(sample.rotate(180), return_tensors="pt")["pixel_values"][0])
        with torch.no_grad():
            output = model.vision_model(pixel_values=pixels)
            vector = model.visual_projection(output.pooler_output)[0]
        (result,) = encoder.encode([prepared])
        assert result.tokens.shape == (10, 32)
        np.testing.assert_allclose(result.tokens, output.last_hidden_state[0], atol=TOLERANCE)
        np.testing.assert_allclose(result.pooled, vector, atol=TOLERANCE)


def test_a_tower_without_projection_has_no_vector(tmp_path: Path) -> None:
    model = Dinov2Model(Dinov2Config(image_size=32, patch_size=16, **{k: TINY[k] for k in list(TINY)[:3]}))
    model.save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    encoder = opened("image", tmp_path)
    (result,) = encode(encoder, picture(0))
    assert not encoder.has_vector
    assert result.tokens.shape == (5, 32)
    np.testing.assert_allclose(result.pooled, result.tokens.mean(0), atol=TOLERANCE)


def test_audio_equals_whisper_cut_and_pooled_after_encoding(whisper: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(whisper).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(whisper)
    encoder = opened("audio", whisper)
    assert not any("decoder" in name for name in encoder.module.state_dict())
    wave = noise(1.01)  # 16160 samples: 51 frames of 320, hence 12 groups of 4 and one of 3
    mel = extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
    np.testing.assert_allclose(encoder.prepare(wave).windows[0], mel[0], atol=1e-5)
    with torch.no_grad():
        frames = model.model.encoder(mel).last_hidden_state[0, :51]
    (result,) = encode(encoder, wave)
    assert result.tokens.shape == (13, 32)
    np.testing.assert_allclose(result.tokens[0], frames[:4].mean(0), atol=TOLERANCE)
    np.testing.assert_allclose(result.tokens[12], frames[48:].mean(0), atol=TOLERANCE)
    np.testing.assert_allclose(result.pooled, frames.mean(0), atol=TOLERANCE)
    (short,) = encode(opened("audio", whisper, window_seconds=1.02), wave)
    assert short.tokens.shape == result.tokens.shape
    assert not np.allclose(short.tokens, result.tokens, atol=1e-4)  # the twin: cutting before encoding is not the same


def test_long_recordings_are_joined_windows(whisper: Path) -> None:
    encoder = opened("audio", whisper, window_seconds=1.0, max_seconds=2.5)
    wave = noise(4)
    (joined,) = encode(encoder, wave)
    parts = encode(encoder, wave[:16000], wave[16000:32000], wave[32000:40000])
    frames = np.concatenate([part.tokens for part in encode(_pool_one(whisper), wave[:16000], wave[16000:32000])])
    assert encoder.truncated == 1
    assert joined.tokens.shape == (32, 32)  # 125 frames in groups of 4, over the borders of windows
    np.testing.assert_allclose(joined.tokens[:25], frames.reshape(25, 4, 32).mean(1), atol=TOLERANCE)
    weights = np.array([50, 50, 25])[:, None]
    np.testing.assert_allclose(
        joined.pooled, (np.stack([p.pooled for p in parts]) * weights).sum(0) / 125, atol=TOLERANCE
    )


def _pool_one(whisper: Path) -> FrozenEncoder:
    return opened("audio", whisper, window_seconds=1.0, pool=1)


def test_the_last_group_is_averaged_over_its_own_frames() -> None:
    frames = torch.arange(6.0)[:, None]
    assert pool_frames(frames, 4).flatten().tolist() == [1.5, 4.5]
    assert pool_frames(frames, 3).flatten().tolist() == [1.0, 4.0]
    assert pool_frames(frames[:2], 4).flatten().tolist() == [0.5]


def test_waveform_models_encode_each_clip_unpadded(tmp_path: Path) -> None:
    config = HubertConfig(conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(160, 2), num_feat_extract_layers=2, **TINY)
    config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups = 16, 2
    model = HubertModel(config).eval()
    model.save_pretrained(tmp_path)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    extractor.save_pretrained(tmp_path)
    values = extractor(noise(0.5), sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        frames = model(values).last_hidden_state[0]
    result = encode(opened("audio", tmp_path), noise(0.5), noise(0.3, 1))[0]
    np.testing.assert_allclose(result.pooled, frames.mean(0), atol=TOLERANCE)
    assert result.tokens.shape == (-(-len(frames) // 4), 32)


def test_a_spectrogram_transformer_gives_frames_in_time(tmp_path: Path) -> None:
    model = ASTModel(ASTConfig(max_length=104, num_mel_bins=64, **TINY)).eval()
    model.save_pretrained(tmp_path)
    extractor = ASTFeatureExtractor(max_length=104, num_mel_bins=64)
    extractor.save_pretrained(tmp_path)
    with torch.no_grad():
        values = extractor(noise(0.45), sampling_rate=16000, return_tensors="pt").input_values
        patches = model(values).last_hidden_state[0, 2:].reshape(5, 9, 32).mean(0)  # 5 bands, 9 times of 0.1 s
    (result,) = encode(opened("audio", tmp_path, pool=1), noise(0.45))
    np.testing.assert_allclose(result.tokens, patches[:5], atol=TOLERANCE)
    with pytest.raises(ConfigError, match=r"always hears 1\.04 s"):
        opened("audio", tmp_path, window_seconds=0.5)


# ---------------------------------------------------------------- frozen, and independent of what else goes on


def differs_with_mates(encoder: FrozenEncoder, samples: list[Any]) -> bool:
    """Whether a sample's features change, by one bit, with what else is encoded or in which order."""
    prepared = [encoder.prepare(sample) for sample in samples]
    together = encoder.encode(prepared)
    return any(
        not (np.array_equal(result.tokens, together[n].tokens) and np.array_equal(result.pooled, together[n].pooled))
        for order in (list(range(len(prepared)))[::-1], [2], [0, 0, 1])
        for n, result in zip(order, encoder.encode([prepared[n] for n in order]), strict=True)
    )


@pytest.mark.parametrize("modality", RANDOM)
def test_results_do_not_depend_on_batch_mates(modality: Any) -> None:
    encoder = opened(modality, RANDOM[modality], window_seconds=1.0)
    assert not differs_with_mates(encoder, SAMPLES[modality])
    one, two = encode(encoder, *SAMPLES[modality][:2])
    assert not np.array_equal(one.pooled, two.pooled)  # different samples, different features


def test_a_model_that_looks_at_batch_mates_is_found() -> None:
    encoder = opened("image", "random:vision")
    assert isinstance(encoder, ImageEncoder)
    honest = encoder.run

    def leaking(model: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, pooled = honest(model, x)
        return tokens, pooled - 1e-3 * pooled.mean(0)

    encoder.run = leaking
    assert differs_with_mates(encoder, SAMPLES["image"])


@pytest.mark.parametrize("modality", RANDOM)
def test_encoding_is_eval_without_graph_and_true_float32(modality: Any) -> None:
    encoder = opened(modality, RANDOM[modality], window_seconds=1.0)
    before = encode(encoder, *SAMPLES[modality][:2])
    assert not encoder.module.training
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        after = encode(encoder, *SAMPLES[modality][:2])
    for one, two in zip(before, after, strict=True):
        assert one.tokens.dtype == one.pooled.dtype == np.float32
        assert np.array_equal(one.tokens, two.tokens)


@pytest.mark.parametrize("modality", RANDOM)
def test_random_encoders_repeat_and_leave_the_generator_alone(modality: Any) -> None:
    state = torch.get_rng_state()
    one, two = opened(modality, RANDOM[modality]), opened(modality, RANDOM[modality] + "?seed=0")
    assert torch.equal(state, torch.get_rng_state())
    assert one.identity == two.identity
    assert opened(modality, RANDOM[modality] + "?seed=1").identity != one.identity
    assert opened(modality, RANDOM[modality] + "?width=48&layers=1").width == 48


def test_pooled_features_keep_no_tokens() -> None:
    (result,) = encode(opened("text", "random:text", features="pooled"), "a dog")
    assert result.tokens.shape == (0, 32)
    assert np.array_equal(result.pooled, encode(opened("text", "random:text"), "a dog")[0].pooled)


def test_weights_stay_bit_equal_to_their_file(bert: Path, clip: Path, whisper: Path) -> None:
    prefixes: dict[Any, tuple[Path, str]] = {
        "text": (bert, ""),
        "image": (clip, ""),
        "audio": (whisper, "model.encoder."),
    }
    for modality, (folder, prefix) in prefixes.items():
        encoder = opened(modality, folder)
        encode(encoder, *SAMPLES[modality][:2])
        file = load_file(folder / "model.safetensors")
        state = encoder.module.state_dict()
        assert len(state) > 10
        for name, tensor in state.items():
            if "position_ids" not in name:
                assert torch.equal(tensor, file[prefix + name]), name


# ---------------------------------------------------------------- identity


def test_the_same_model_elsewhere_is_the_same(bert: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bert, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "5.0.0", "_name_or_path": "x"}))
    identity = opened("text", bert).identity
    assert opened("text", copy).identity == identity
    assert json.loads(json.dumps(identity)) == identity  # plain JSON


@pytest.mark.parametrize("file", ["weights", "config", "tokenizer"])
def test_identity_changes_with_what_the_folder_holds(bert: Path, file: str) -> None:
    before = opened("text", bert).identity
    if file == "weights":
        weights = load_file(bert / "model.safetensors")
        weights["encoder.layer.0.output.dense.bias"][3] += 1e-7
        save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    elif file == "config":
        config = json.loads((bert / "config.json").read_text())
        (bert / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    else:
        path = bert / "tokenizer.json"
        path.write_text(path.read_text().replace('"dog"', '"wolf"'))
    after = opened("text", bert).identity
    assert {key for key in before if before[key] != after[key]} == {file}


@pytest.mark.parametrize(
    ("modality", "options"),
    [
        ("text", {"prefix": "query: "}),
        ("text", {"max_tokens": 32}),
        ("text", {"features": "pooled"}),
        ("audio", {"pool": 2}),
        ("audio", {"max_seconds": 10.0}),
        ("audio", {"window_seconds": 2.0}),
    ],
)
def test_identity_changes_with_every_option_that_changes_a_result(modality: Any, options: dict[str, Any]) -> None:
    assert opened(modality, RANDOM[modality], **options).identity != opened(modality, RANDOM[modality]).identity
    same = opened(modality, RANDOM[modality], batch_size=3).identity
    assert same == opened(modality, RANDOM[modality]).identity


def test_identity_changes_with_the_preprocessing(clip: Path, whisper: Path) -> None:
    for modality, folder, key, value in (("image", clip, "image_std", [0.5] * 3), ("audio", whisper, "n_fft", 512)):
        before = opened(modality, folder).identity
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        assert opened(modality, folder).identity != before


def test_noise_in_the_preprocessing_is_refused(whisper: Path) -> None:
    path = whisper / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dither": 0.1}))
    with pytest.raises(ConfigError, match="adds noise"):
        opened("audio", whisper)


# ---------------------------------------------------------------- the text that reaches the tokenizer


def test_e5_gets_its_prefix_and_others_none(bert: Path) -> None:
    e5 = shutil.copytree(bert, bert.parent / "e5-small")
    ids = BertTokenizer.from_pretrained(bert)
    assert list(opened("text", e5).prepare("red dog").ids) == ids("query: red dog")["input_ids"]
    assert list(opened("text", bert).prepare("red dog").ids) == ids("red dog")["input_ids"]
    assert list(opened("text", e5, prefix="the ").prepare("red dog").ids) == ids("the red dog")["input_ids"]
    assert [default_prefix(name) for name in ("intfloat/e5-small-v2", "me/multilingual-e5-base")] == ["query: "] * 2
    assert [default_prefix(name) for name in ("bert-base", "x/table5-model", "e5/bert")] == [""] * 3


def test_cut_texts_are_counted(bert: Path) -> None:
    encoder = opened("text", bert, max_tokens=8)
    results = encode(encoder, "a red dog", "a red dog and a cat", "a red dog and a cat and a red dog")
    assert [len(result.tokens) for result in results] == [5, 8, 8]
    assert encoder.truncated == 1  # the second fits exactly


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("modality", "sample", "message"),
    [
        ("text", "  ", "the text is empty"),
        ("image", Image.new("L", (8, 8)), "mode L, not RGB"),
        ("audio", np.zeros(0, np.float32), "at least one sample"),
        ("audio", np.zeros((2, 100), np.float32), "mono"),
        ("audio", np.array([0.0, np.nan], np.float32), "not finite"),
    ],
)
def test_a_sample_that_says_nothing_is_refused(modality: Any, sample: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(modality, RANDOM[modality]).prepare(sample)


@pytest.mark.parametrize(
    ("modality", "spec", "options", "message"),
    [
        ("text", "random:vision", {}, "must be `random:text`"),
        ("text", "random:text?with=32", {}, "with=32 is not possible; allowed are width"),
        ("text", "random:text?width=33", {}, "a multiple of 16"),
        ("text", "package:efficientnet-lite0", {}, "ready names for text are: package:minilm"),
        ("image", "/nowhere/model", {}, "no such folder"),
        ("text", "random:text", {"max_tokens": 1, "pool": 0}, "max_tokens is 1.*\n.*pool is 0"),
        ("text", "BERT", {"max_tokens": 65}, "max_tokens is 65; the model reads at most 64"),
        ("audio", "BERT", {}, "type 'bert'; allowed are whisper"),
        ("image", "BERT", {}, "no image processor"),
        ("text", "CLIP", {}, "type 'clip'; allowed are encoders of text"),
        ("text", "WHISPER", {}, "type 'whisper'; allowed are encoders of text"),
        ("text", "EMPTY", {}, "config.json cannot be read"),
    ],
)
def test_what_cannot_be_opened_gets_a_clear_line(
    request: pytest.FixtureRequest, modality: Any, spec: str, options: dict[str, Any], message: str
) -> None:
    if spec == "EMPTY":
        spec = str(request.getfixturevalue("tmp_path"))
    elif spec.isupper():
        spec = str(request.getfixturevalue(spec.lower()))
    with pytest.raises(ConfigError, match=message):
        opened(modality, spec, **options)


def test_a_missing_weight_is_refused_not_drawn(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 of its weights are not in .* first encoder.layer.1.output.dense.weight"):
        opened("text", bert)


def test_an_unused_pooler_may_be_missing(tmp_path: Path, bert: Path) -> None:
    BertForMaskedLM(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **TINY)).save_pretrained(bert)
    assert opened("text", bert).identity == opened("text", bert).identity  # nothing in it is drawn at random


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sensorium\[demo\]'"):
        opened("text", "package:minilm")


def test_the_hub_is_not_asked_where_that_is_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE forbids") as caught:
        opened("image", "openai/clip-vit-base-patch32")
    line = str(caught.value)
    assert "\n" not in line
    assert "openai/clip-vit-base-patch32" in line
    assert "`random:vision`" in line
    assert "local Hugging Face folder" in line


def test_an_unreachable_hub_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def silent(request: urllib.request.Request, timeout: float) -> None:
        assert timeout <= 5
        raise TimeoutError("timed out")

    monkeypatch.setattr(urllib.request, "urlopen", silent)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"huggingface\.co: timed out\)"):
        opened("audio", "openai/whisper-tiny")
    assert time.monotonic() - started < 2


def test_a_hub_model_in_the_local_cache_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bert: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0" * 40
    model = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(bert, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    assert opened("text", "someone/tiny").identity == opened("text", bert).identity
    (model / "snapshots" / commit / "model.safetensors").unlink()  # the twin: half a model is none
    with pytest.raises(ConfigError, match="neither a folder nor in the local cache"):
        opened("text", "someone/tiny")
