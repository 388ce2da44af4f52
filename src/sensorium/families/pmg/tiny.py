"""Random models as folders, in the layout of real ones and read by the same code: for tests and first tries.

```
pmg-tiny-N/
    llm/                 a Llama of two layers with four heads on two key/value heads, and its tokenizer
    clip/                a CLIP of two layers on each side, its tokenizer and image processor
    stable_diffusion/    unet  vae  text_encoder  tokenizer  scheduler  model_index.json
```
They know nothing. The UNet's cross attention is strong and its answer loud, so that there is something to be learned:
what to tell it, so that it says less.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sensorium.data.files import cache_folder
from sensorium.errors import DataError
from sensorium.families.pmg.diffusion import silent
from sensorium.files import make_folder, new_folder, write_by_library, write_json
from sensorium.parts.encoders_base import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LLM, DIFFUSION, CLIP = "llm", "stable_diffusion", "clip"
LLM_TOKENS, TEXT_TOKENS = 400, 24  # vocabulary of the language model; length of the text encoder
_FORMAT = 2  # of the folders: a change makes older ones unused
_WIDTH, _STRENGTH, _LOUDNESS = 32, 12.0, 6.0
_WORDS = (
    "A person liked the following images: 1. a red circle 2. a blue square 3. a green triangle. Describe this person's "
    "visual taste. Human: Assistant: a yellow star, a purple cross, an orange ring"
)


_SCHEDULE: Mapping[str, Any] = {  # Stable Diffusion's
    **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    **{"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
}


def tiny_folder(part: str) -> Path:
    """``llm``, ``stable_diffusion`` or ``clip``, written first where it is not there yet: a second."""
    root = cache_folder(f"pmg-tiny-{_FORMAT}")
    if not (root / part).is_dir():
        make_folder(root)
        try:
            with new_folder(root / part) as folder, torch.random.fork_rng(devices=[]), quiet():
                torch.manual_seed(0)
                {LLM: write_llm, DIFFUSION: write_diffusion, CLIP: write_clip}[part](folder)
        except DataError:  # another program may have made it at the same time
            if not (root / part).is_dir():
                raise
    return root / part


def write_llm(folder: Path) -> None:
    """Weights follow from torch's generator."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    bos, eos = "<s>", "</s>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=LLM_TOKENS, special_tokens=[bos, eos], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([_WORDS] * 4, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    config = LlamaConfig(
        vocab_size=LLM_TOKENS,
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        tie_word_embeddings=True,  # so that it can also answer
        bos_token_id=0,
        eos_token_id=1,
    )
    write_by_library(folder, wrapped.save_pretrained)
    write_by_library(folder, LlamaModel(config).save_pretrained)


def write_diffusion(folder: Path, *, width: int = _WIDTH, prediction: str = "epsilon") -> None:
    """Weights follow from torch's generator. ``width``: of what the UNet is told."""
    with silent():
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn2.to_out.0.weight" in name:
                parameter.mul_(_STRENGTH)
        unet.conv_out.weight.mul_(_LOUDNESS)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
    )
    scheduler = DDIMScheduler(prediction_type=prediction, **_SCHEDULE)
    for name, part in (("unet", unet), ("vae", vae), ("scheduler", scheduler)):
        write_by_library(folder / name, part.save_pretrained)
    _write_text_encoder(folder, width)
    index = {name: ["transformers", kind] for name, kind in _TEXT_PARTS.items()}
    index |= {name: ["diffusers", type(part).__name__] for name, part in (("unet", unet), ("vae", vae))}
    more = {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None] * 2,
    }
    write_json(
        folder / "model_index.json",
        {"_class_name": "StableDiffusionPipeline", **index, **more, "requires_safety_checker": False},
    )


_TEXT_PARTS = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}


def write_clip(folder: Path) -> None:
    """Weights follow from torch's generator."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer, words = _text_tokenizer()
    sizes = {"hidden_size": _WIDTH, "intermediate_size": 2 * _WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={**sizes, **words, "max_position_embeddings": TEXT_TOKENS},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=_WIDTH,
        initializer_factor=4.0,  # the usual 1 would make all pictures alike
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    for part in (tokenizer, processor, CLIPModel(config)):
        write_by_library(folder, part.save_pretrained)


def _write_text_encoder(folder: Path, width: int) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer, words = _text_tokenizer()
    config = CLIPTextConfig(
        **words,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_TOKENS,
        initializer_factor=2.0,
    )
    write_by_library(folder / "tokenizer", tokenizer.save_pretrained)
    write_by_library(folder / "text_encoder", CLIPTextModel(config).save_pretrained)


def _text_tokenizer() -> tuple[PreTrainedTokenizerBase, dict[str, int]]:
    """A tokenizer of CLIP, and what a text encoder's configuration says of it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    special, suffix = ("<|startoftext|>", "<|endoftext|>"), "</w>"
    words = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), end_of_word_suffix=suffix, show_progress=False
    )
    words.train_from_iterator([_WORDS.lower()] * 4 + list(string.printable), trainer)
    learned = json.loads(words.to_str())["model"]
    vocabulary = learned["vocab"]
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(pair) for pair in learned["merges"]], model_max_length=TEXT_TOKENS
    )
    begin, end = (vocabulary[one] for one in special)
    return tokenizer, {
        "vocab_size": len(vocabulary), "bos_token_id": begin, "eos_token_id": end, "pad_token_id": end
    }  # fmt: skip
