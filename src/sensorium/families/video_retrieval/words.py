"""Texts for CLIP: byte-pair encoding between a start and an end token, cut to a number of tokens that keeps the end.

Legend: B texts, L tokens.

CLIP's vocabulary comes from the folder of ``model.clip``. A random CLIP has one of bytes, made on the spot: 256 bytes,
the same 256 at the end of a word, start and end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from sensorium import reading
from sensorium.errors import ConfigError, DataError
from sensorium.families.video_retrieval.config import ModelConfig
from sensorium.families.video_retrieval.shape import ClipShape, clip_folder, clip_shape

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
_PIECES = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_FILES = "tokenizer.json, or vocab.json and merges.txt"


class Words:
    """CLIP's tokenizer. ``length``: most tokens of a text, start and end included. ``start`` and ``end``: their
    numbers; what follows the end is filled with ends, as CLIP does it."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length
        self.start, self.end = (tokenizer.token_to_id(word) for word in (START, END))
        self.size = tokenizer.get_vocab_size()

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (self.tokenizer.to_str(), self.length)

    def numbers(self, text: str) -> tuple[list[int], bool]:
        """Tokens of a text between start and end, and whether some were cut off. Raises DataError for an empty text."""
        if not text.strip():
            raise DataError("the text is empty")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError("the text holds half of a surrogate pair, which is no character")
        inner = self.tokenizer.encode(text, add_special_tokens=False).ids
        kept = inner[: self.length - 2]
        return [self.start, *kept, self.end], len(kept) < len(inner)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """``input_ids`` and ``attention_mask``, both ``[B, L]`` int64, L always ``length``. Raises DataError."""
        ids_BL = torch.full((len(texts), self.length), self.end)
        mask_BL = torch.zeros((len(texts), self.length), dtype=torch.int64)
        for row, text in enumerate(texts):
            numbers, _ = self.numbers(text)
            ids_BL[row, : len(numbers)] = torch.tensor(numbers)
            mask_BL[row, : len(numbers)] = 1
        return ids_BL, mask_BL

    def cut(self, texts: Sequence[str]) -> int:
        """How many of the texts lose an end."""
        return sum(self.numbers(text)[1] for text in texts)


def open_tokenizer(config: ModelConfig, length: int) -> Words:
    """The tokenizer of ``model.clip`` for texts of ``length`` tokens. Raises ConfigError: no such model, no tokenizer
    beside it, or one that does not fit it."""
    shape = clip_shape(config)
    if length > shape.context:
        raise ConfigError(f"model.words is {length}; model.clip {config.clip!r} reads {shape.context} tokens at most")
    if config.clip.startswith("random:"):
        words = Words(byte_tokenizer(shape), length)
    else:
        words = Words(read_tokenizer(clip_folder(config)), length)
    if words.size > shape.vocab or words.end != shape.eot_id:
        raise ConfigError(
            f"model.clip {config.clip!r}: its tokenizer has {words.size} tokens, end {words.end}; the model has "
            f"{shape.vocab}, end {shape.eot_id}: they do not belong together"
        )
    return words


def byte_tokenizer(shape: ClipShape) -> Tokenizer:
    """Every byte is a token, and another one at the end of a word; the last two of the vocabulary are start and end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(sign + WORD_END for sign in alphabet)]
    numbers = {token: number for number, token in enumerate(tokens)}
    return _clip_tokenizer(numbers | {START: shape.vocab - 2, END: shape.vocab - 1}, [])


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder of a CLIP. Raises ConfigError naming the folder and what it lacks."""
    whole, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if whole.is_file():
            numbers, pairs = _whole(reading.parse_json(reading.read_bytes(whole)))
        elif vocab.is_file() and merges.is_file():
            numbers = _vocabulary(reading.parse_json(reading.read_bytes(vocab)))
            pairs = _merges(reading.read_bytes(merges).decode().split("\n"))
        else:
            raise ConfigError(f"{folder}: no tokenizer beside the model ({_FILES}); save it there, too")
        _require_fitting(numbers, pairs)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: its tokenizer cannot be used ({error})") from error
    return _clip_tokenizer(numbers, pairs)


def _rebuilt(text: str, length: int) -> Words:
    return Words(Tokenizer.from_str(text), length)


def _clip_tokenizer(numbers: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """As ``transformers.CLIPTokenizer`` builds it, which takes seconds to import."""
    model = models.BPE(
        vocab=dict(numbers),
        merges=list(merges),
        continuing_subword_prefix="",
        end_of_word_suffix=WORD_END,
        fuse_unk=False,
        unk_token=END,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def _whole(content: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a ``tokenizer.json``. Raises ValueError."""
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("merges"), list):
        raise ValueError("tokenizer.json: expected byte-pair encoding, as CLIP has it")
    added = content.get("added_tokens") or []
    if not (isinstance(added, list) and all(isinstance(one, dict) for one in added)):
        raise ValueError("tokenizer.json: added_tokens: expected a list of tokens")
    numbers = _vocabulary(model.get("vocab"))
    numbers |= _vocabulary({str(one.get("content")): one.get("id") for one in added})
    return numbers, _merges(model["merges"])


def _vocabulary(content: Any) -> dict[str, int]:
    if not isinstance(content, dict) or not all(type(number) is int and number >= 0 for number in content.values()):
        raise ValueError("the vocabulary: expected words and their numbers")
    return dict(content)


def _merges(lines: Sequence[Any]) -> list[tuple[str, str]]:
    """Pairs, each a list or two words in a line; the line of the version is passed over."""
    pairs = []
    for line in lines:
        if isinstance(line, str) and (not line.strip() or line.startswith("#version")):
            continue
        pair = line.split() if isinstance(line, str) else line
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(piece, str) for piece in pair)):
            raise ValueError(f"the merges: expected pairs of pieces (found {str(line)[:40]!r})")
        pairs.append((pair[0], pair[1]))
    return pairs


def _require_fitting(numbers: Mapping[str, int], pairs: Sequence[tuple[str, str]]) -> None:
    if missing := [word for word in (START, END) if word not in numbers]:
        raise ValueError(f"it is not CLIP's: it lacks {' and '.join(missing)}")
    for one, other in pairs:
        if not {one, other, one + other} <= numbers.keys():
            raise ValueError(f"the vocabulary lacks what the merge {one} {other} needs")
