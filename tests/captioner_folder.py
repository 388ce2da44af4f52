"""A BLIP of random weights as a folder: it names every picture, if with little sense."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil

from sensorium.parts.encoders_base import quiet

_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "boat", "dog", "the", "sea", "old", "tree")


def write_blip(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(_WORDS))
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": len(_WORDS), "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    text = {**size, **ids, "encoder_hidden_size": 16, "max_position_embeddings": 64, "is_decoder": True}
    vision = {**size, "image_size": 32, "patch_size": 16}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=8, image_text_hidden_size=8)
    torch.manual_seed(seed)
    with quiet():
        model = BlipForConditionalGeneration(config)
        for parameter in model.parameters():  # wide, so that pictures differ
            torch.nn.init.normal_(parameter, std=0.5)
        bias: torch.Tensor = model.text_decoder.cls.predictions.bias.data
        bias[:5] = -1e3  # words alone: at random, it would often say nothing
        model.save_pretrained(folder)
        BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
        BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
