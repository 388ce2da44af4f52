"""Opening language models and tokenizers, and configurations of the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from climate_rows import END, VOCABULARY, make_batch, make_llm
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from sensorium import config as configuration
from sensorium.errors import ConfigError
from sensorium.families.climate_text.config import ModelConfig
from sensorium.families.climate_text.encoders import FieldFacts, checkpointed_layers
from sensorium.families.climate_text.llm import open_llm, open_tokenizer, precision_notes
from sensorium.families.climate_text.model import ClimateTextFusion
from sensorium.families.climate_text.tiny_llm import RANDOM, random_llm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "llm"
    make_llm("GPT2LMHeadModel").save_pretrained(path)
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"w{END}").save_pretrained(path)
    return path


def test_a_folder_is_opened(folder: Path) -> None:
    model = ModelConfig(llm=str(folder))
    tokenizer = open_tokenizer(model)
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == END
    llm, batch = open_llm(model), make_batch()
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"].long()}
    with torch.no_grad():
        torch.testing.assert_close(llm(**given).logits, make_llm("GPT2LMHeadModel")(**given).logits)
    assert not llm.training
    assert not any(p.requires_grad for p in llm.parameters())
    assert next(open_llm(model, torch.bfloat16).parameters()).dtype == torch.bfloat16
    trained = open_llm(model.model_copy(update={"freeze_llm": False}), torch.bfloat16)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in trained.parameters())


def test_a_tokenizer_needs_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert open_tokenizer(ModelConfig(llm=str(folder))).eos_token_id == END
    with pytest.raises(ConfigError, match="cannot be loaded"):
        open_llm(ModelConfig(llm=str(folder)))


def test_weights_that_are_missing_are_not_drawn(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"language model .*: 1 of its weights are not in .*h\.1\.mlp\.c_fc\.weight"):
        open_llm(ModelConfig(llm=str(folder)))


def test_an_unknown_architecture_is_told_before_its_weights_are_read(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=11)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"never looked at")
    with pytest.raises(
        ConfigError, match=r"architecture BertForMaskedLM is not known; model.llm may be of Bloom.*StableLm"
    ):
        open_llm(ModelConfig(llm=str(tmp_path / "bert")))


@pytest.mark.parametrize("open_one", [open_llm, open_tokenizer])
def test_a_missing_model_is_one_line(open_one: object) -> None:
    assert callable(open_one)
    with pytest.raises(ConfigError) as caught:
        open_one(ModelConfig(llm="./no/such/folder"))
    assert str(caught.value).startswith("language model './no/such/folder': no such folder. Allowed are a local folder")
    with pytest.raises(ConfigError) as caught:
        open_one(ModelConfig())
    line = str(caught.value)
    assert "HF_HUB_OFFLINE forbids" in line
    assert "hf auth login" in line
    assert "HuggingFaceTB/SmolLM2-135M" in line
    assert "\n" not in line


def test_a_tokenizer_without_an_end_is_refused(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    del content["eos_token"]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="has no end token"):
        open_tokenizer(ModelConfig(llm=str(folder)))


def test_the_random_model_reads_anything_and_is_always_the_same() -> None:
    model = ModelConfig(llm=RANDOM)
    tokenizer = open_tokenizer(model)
    text = "Grüße: 5 °C, 雨 \n<end>"
    ids = tokenizer(text[:-5])["input_ids"]
    assert tokenizer.decode(ids) == text[:-5]
    known = "Over the Sahara, which of the northern and southern halves has the higher anomaly of 2 m temperature?"
    assert len(tokenizer(known)["input_ids"]) < len(known.split()) + 8  # whole words, digits apart
    assert 400 < len(tokenizer) < 1500
    assert tokenizer(text)["input_ids"][-1] == tokenizer.eos_token_id
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = random_llm()
    assert torch.equal(torch.rand(1), expected)
    assert len(tokenizer) == first.config.vocab_size
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (first.config.pad_token_id, first.config.eos_token_id)
    assert len(first.model.layers) == 4
    for one, other in zip(first.parameters(), open_llm(model).parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_frozen_half_model_and_trained_full_parts_go_together() -> None:
    torch.manual_seed(0)
    model = ModelConfig(llm=RANDOM, num_fusion_layers=3, climate_encoder="grid_vit", lora={"rank": 2})
    fusion = ClimateTextFusion(model, FieldFacts(3, 2, 0, 12), dtype=torch.bfloat16).train()
    assert {p.dtype for p in fusion.llm.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in fusion.parameters() if p.requires_grad} == {torch.float32}
    batch = make_batch()
    with torch.no_grad():
        plain = fusion.llm(batch["input_ids"], batch["attention_mask"].long()).logits
        assert torch.equal(fusion.logits(batch), plain)
    fusion(batch).losses().mean().backward()
    assert all(p.grad is not None for p in fusion.parameters() if p.requires_grad)


def test_no_code_of_a_folder_is_run(folder: Path) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content |= {"model_type": "own", "auto_map": {"AutoConfig": "evil.Own", "AutoModelForCausalLM": "evil.Own"}}
    path.write_text(json.dumps(content))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        open_llm(ModelConfig(llm=str(folder)))


# --- configuration


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"encoder_path": "a.pt", "random_init": True}, "encoder_path is given, but random_init is true"),
        ({"mask_unit": [8, 8], "climate_encoder": "grid_vit"}, "grid_vit has no units"),
        ({"mask_unit": [0, 8]}, r"mask_unit \[0, 8\]: both sides must be 1 or more"),
        ({"token_window": "small"}, "token_window"),
        ({"fusion_width": 100}, "fusion_width 100 must be at least 8 and a multiple of fusion_heads 8, or auto"),
        ({"prithvi": {"width": 30}}, "width 30 must be a multiple of 4 and of the 16 heads"),
        ({"grid_vit": {"width": 30}}, "width 30 must be a multiple of 4 and of the 4 heads"),
        ({"fusion_mod": "add"}, "did you mean 'fusion_mode'"),
        ({"lora": {"targets": []}}, "targets"),
        ({"objective": "pooled_mse_legacy", "contrastive_weight": 1}, "contrastive_weight goes with objective lm"),
    ],
)
def test_configurations_that_cannot_be_are_one_line(changes: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        configuration.build(ModelConfig, changes)


def test_a_configuration_survives_dump_and_load() -> None:
    model = configuration.build(ModelConfig, {"mask_unit": [16, 32], "token_window": [2, 4], "lora": {"rank": 4}})
    assert model.mask_unit == (16, 32)
    assert configuration.build(ModelConfig, configuration.dump(model)) == model


def test_settings_that_do_nothing_are_named() -> None:
    assert ModelConfig().notes() == []
    assert ModelConfig(fusion_mode="add").notes() == ["model.num_fusion_layers does nothing with fusion_mode add"]
    found = ModelConfig(
        gradient_checkpointing=False, activation_checkpointing="every_2", freeze_llm=False, lora={"rank": 2}
    )
    assert [note.split()[0] for note in found.notes()] == ["model.activation_checkpointing", "model.lora"]


def test_layers_that_are_computed_twice() -> None:
    assert checkpointed_layers(ModelConfig(), 3) == (0, 1, 2)
    assert checkpointed_layers(ModelConfig(activation_checkpointing="every_2"), 5) == (0, 2, 4)
    assert checkpointed_layers(ModelConfig(activation_checkpointing="none"), 3) == ()
    assert checkpointed_layers(ModelConfig(gradient_checkpointing=False), 3) == ()


def test_bfloat16_weights_are_not_computed_in_float16_unsaid(folder: Path) -> None:
    model = ModelConfig(llm=str(folder))
    assert precision_notes(model, "fp16") == []  # made in float32
    make_llm("GPT2LMHeadModel").bfloat16().save_pretrained(folder)
    assert "was made in bfloat16" in precision_notes(model, "fp16")[0]
    assert precision_notes(model, "bf16") == precision_notes(ModelConfig(llm=RANDOM), "fp16") == []
