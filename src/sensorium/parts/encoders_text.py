"""Frozen text encoders: any BERT-like model of transformers."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from sensorium.errors import ConfigError, DataError
from sensorium.parts.encoders_base import (
    LOAD_ERRORS,
    Encoded,
    FrozenEncoder,
    Request,
    computing,
    config_digest,
    fixed_batches,
    freeze,
    load_pretrained,
    quiet,
    read_config,
    reason,
    weights_digest,
)

_BUCKET = 8  # lengths are filled up to a multiple of this: few shapes, little waste
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True)
class PreparedText:
    ids: tuple[int, ...]
    cut: bool


@dataclass(eq=False, kw_only=True)
class TextEncoder(FrozenEncoder):
    """Tokens: last hidden state of the real tokens ``[n, width]``; pooled: their mean, L2-normalised."""

    tokenizer: PreTrainedTokenizerBase
    prefix: str
    max_tokens: int

    def prepare(self, sample: str) -> PreparedText:
        if not sample.strip():
            raise DataError("the text is empty")
        text = self.prefix + sample
        ids = self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
        cut = False
        if len(ids) == self.max_tokens:
            with quiet():  # the library warns of a length that never reaches the model
                cut = len(self.tokenizer(text, truncation=False)["input_ids"]) > self.max_tokens
        return PreparedText(tuple(ids), cut)

    def encode(self, prepared: Sequence[PreparedText]) -> list[Encoded]:
        self.truncated += sum(text.cut for text in prepared)
        buckets: dict[int, list[int]] = defaultdict(list)
        for number, text in enumerate(prepared):
            buckets[min(-(-len(text.ids) // _BUCKET) * _BUCKET, self.max_tokens)].append(number)
        results: dict[int, Encoded] = {}
        for length, numbers in sorted(buckets.items()):
            for real, rows in fixed_batches(len(numbers), self.batch_size):
                hidden_BLD = self._hidden([prepared[numbers[row]].ids for row in rows], length)
                for place, row in enumerate(real):
                    tokens_ND = hidden_BLD[place, : len(prepared[numbers[row]].ids)]
                    results[numbers[row]] = self.encoded(tokens_ND, F.normalize(tokens_ND.mean(0), dim=0))
        return [results[number] for number in range(len(prepared))]

    def _hidden(self, texts: Sequence[tuple[int, ...]], length: int) -> Tensor:
        fill = self.tokenizer.pad_token_id or 0
        ids_BL = torch.tensor([list(ids) + [fill] * (length - len(ids)) for ids in texts], device=self.device)
        mask_BL = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in texts], device=self.device)
        with computing(self.device):
            hidden: Tensor = self.module(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
            return hidden.cpu()


def open_text_folder(folder: Path, request: Request) -> TextEncoder:
    """A Hugging Face folder with an encoder of text and its tokenizer. Raises ConfigError."""
    name, options = request.name, request.options
    config = read_config(folder)
    if config.get("is_encoder_decoder") or config.get("is_decoder") or "vision_config" in config:
        raise ConfigError(
            f"text encoder {name}: {folder} holds a model of type {config.get('model_type')!r}; allowed are "
            "encoders of text only (BERT, RoBERTa, MPNet, E5, MiniLM and their like)"
        )
    model = load_pretrained(AutoModel.from_pretrained, folder, name)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except LOAD_ERRORS as error:
        raise ConfigError(
            f"text encoder {name}: {folder} has no tokenizer that can be loaded ({reason(error)})"
        ) from error
    longest = config.get("max_position_embeddings", options.max_tokens)
    if options.max_tokens > longest:
        raise ConfigError(f"text encoder {name}: max_tokens is {options.max_tokens}; the model reads at most {longest}")
    facts = {"config": config_digest(config), "tokenizer": _files_digest(folder)}
    return _encoder(model, tokenizer, facts, request)


def random_text(width: int, layers: int, request: Request) -> TextEncoder:
    """A BertModel with random weights and a byte tokenizer of its own; the caller has seeded."""
    tokenizer = _byte_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 16),
        intermediate_size=4 * width,
        max_position_embeddings=request.options.max_tokens,
        initializer_range=width**-0.5,  # the usual 0.02 would leave so small a network next to linear
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False)
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    return _encoder(model, tokenizer, {"config": request.name, "tokenizer": digest}, request)


def _encoder(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    facts: Mapping[str, str],
    request: Request,
) -> TextEncoder:
    options, device = request.options, request.device
    prefix = default_prefix(request.name) if options.prefix is None else options.prefix
    width = int(model.config.hidden_size)
    identity = {
        "modality": "text",
        "class": type(model).__name__,
        "width": width,
        "pooled_width": width,
        "has_vector": False,
        **facts,
        "weights": weights_digest(model),
        "prefix": prefix,
        "max_tokens": options.max_tokens,
        "features": options.features,
        "pooled": "mean of the real tokens, L2",
    }
    return TextEncoder(
        name=request.name,
        modality="text",
        module=freeze(model, device),
        device=device,
        identity=identity,
        width=width,
        pooled_width=width,
        has_vector=False,
        batch_size=request.batch_size(16, 128),
        features=options.features,
        tokenizer=tokenizer,
        prefix=prefix,
        max_tokens=options.max_tokens,
    )


def default_prefix(name: str) -> str:
    """E5 was trained with ``query: `` before both sides of symmetric tasks (arXiv 2212.03533, model card)."""
    return "query: " if re.search(r"(^|[-_])e5([-_]|$)", Path(name).name.lower()) else ""


def _files_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            digest.update(f"{name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and pairs of small letters as one token: no training, every language, no unknown token."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = [(first, second) for first in letters for second in letters]
    words = special + sorted(pre_tokenizers.ByteLevel.alphabet()) + [first + second for first, second in pairs]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=pairs))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )
