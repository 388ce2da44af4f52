"""Words of `interaction`: word vectors and tokenizer of a pretrained model, or a vocabulary learned from the captions.

What the word table begins with is read once, when a run starts. The vocabulary travels with the run as plain values
(``Vocabulary.values``), so that a trained model needs neither the hub nor the folder again.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from sensorium import reading
from sensorium.errors import CheckpointError, ConfigError, DataError
from sensorium.families.interaction.config import TextConfig
from sensorium.families.interaction.towers import STD
from sensorium.parts.encoders_hub import model_folder, package_path

PAD, UNKNOWN, FIRST, LAST, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_TABLE = "embeddings.word_embeddings.weight"
_READY = "package:minilm"
_KIND = "model of word vectors and tokenizer"
_WITHOUT = "model.text.word_vectors=none model.text.tokenizer=learn"
_ADVICE = (
    "Give the local folder of a model with BERT's vocabulary (model.text.word_vectors=FOLDER), or one that comes as a "
    f"package (model.text.word_vectors={_READY}), or do without: {_WITHOUT} begins with random vectors and learns the "
    "words from the training captions"
)
_TORCH_ERRORS = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)


@dataclass(frozen=True)
class Vocabulary:
    """WordPieces in the order of their numbers, and how texts are made ready for them (``None``: accents go where small
    letters are made, as in BERT)."""

    words: tuple[str, ...]
    lowercase: bool = True
    strip_accents: bool | None = None

    def values(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return {"words": list(self.words), "lowercase": self.lowercase, "strip_accents": self.strip_accents}

    @staticmethod
    def of(values: Mapping[str, Any]) -> Vocabulary:
        """Back from plain values. Raises CheckpointError for anything else."""
        words, lowercase, accents = (values.get(name) for name in ("words", "lowercase", "strip_accents"))
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise CheckpointError("the stored vocabulary is damaged: its words are no list of texts")
        if not isinstance(lowercase, bool) or not (accents is None or isinstance(accents, bool)):
            raise CheckpointError("the stored vocabulary is damaged: lowercase and strip_accents are no truth values")
        if problem := _problem(words):
            raise CheckpointError(f"the stored vocabulary is damaged: {problem}")
        return Vocabulary(tuple(words), lowercase, accents)


def _problem(words: Sequence[str]) -> str | None:
    missing = [word for word in SPECIAL if word not in words]
    if missing:
        return f"it lacks {', '.join(missing)}"
    return f"{len(words) - len(set(words))} of its words stand there twice" if len(set(words)) < len(words) else None


@dataclass(frozen=True)
class Texts:
    """``input_ids`` ``[B, L]`` int64, ``attention_mask`` ``[B, L]`` bool; ``cut``: texts of which an end is missing."""

    input_ids: Tensor
    attention_mask: Tensor
    cut: int


class WordTokenizer:
    """BERT's tokenizer over a vocabulary. Texts are cut to ``max_tokens``, [CLS] and [SEP] included.

    Words in brackets inside a text, such as [SEP], are text like any other.
    """

    def __init__(self, vocabulary: Vocabulary, max_tokens: int) -> None:
        self.vocabulary, self.max_tokens = vocabulary, max_tokens
        numbers = {word: number for number, word in enumerate(vocabulary.words)}
        self.pad, self.first, self.last = numbers[PAD], numbers[FIRST], numbers[LAST]
        self._tokenizer = _tokenizer(vocabulary.lowercase, vocabulary.strip_accents, numbers)

    def encode(self, text: str) -> tuple[list[int], bool]:
        """Numbers of the tokens, and whether an end was cut off. Raises DataError for an empty text, and for halves of
        surrogate pairs, which are no characters."""
        if not text.strip():
            raise DataError("the text is empty")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError("the text holds half of a surrogate pair, which is no character")
        ids = [self.first, *self._tokenizer.encode(text, add_special_tokens=False).ids, self.last]
        if len(ids) <= self.max_tokens:
            return ids, False
        return [*ids[: self.max_tokens - 1], self.last], True

    def batch(self, texts: Sequence[str]) -> Texts:
        """Texts side by side, padded to the longest. Raises DataError as ``encode`` does."""
        encoded = [self.encode(text) for text in texts]
        longest = max(len(ids) for ids, _ in encoded)
        ids_BL = torch.full((len(texts), longest), self.pad)
        mask_BL = torch.zeros((len(texts), longest), dtype=torch.bool)
        for row, (ids, _) in enumerate(encoded):
            ids_BL[row, : len(ids)] = torch.tensor(ids)
            mask_BL[row, : len(ids)] = True
        return Texts(ids_BL, mask_BL, sum(cut for _, cut in encoded))


def _tokenizer(lowercase: bool, strip_accents: bool | None, numbers: Mapping[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab=dict(numbers), unk_token=UNKNOWN, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


# ---------------------------------------------------------------- of a pretrained model


@dataclass(frozen=True)
class Places:
    """Folders of the pretrained models that the words come from; None: random vectors, a learned vocabulary."""

    vectors: Path | None
    tokenizer: Path | None


def find(config: TextConfig) -> Places:
    """Where the words are. To be called before anything slow: raises ConfigError for what cannot be reached."""
    vectors = None if config.word_vectors == "none" else _folder(config.word_vectors)
    if config.tokenizer == "same":
        return Places(vectors, vectors)
    return Places(vectors, None if config.tokenizer == "learn" else _folder(config.tokenizer))


def _folder(spec: str) -> Path:
    if spec == _READY:
        return package_path("minilm", f"{_KIND} {spec!r}")
    allowed = f"a Hugging Face folder, a hub name, `{_READY}`, and {_WITHOUT}"
    return model_folder(spec, _KIND, allowed, f"{_ADVICE}.")


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The vocabulary of a BERT-like model's folder: ``tokenizer.json``, else ``vocab.txt``. Raises ConfigError; also
    when it has more words than the table has ``rows``."""
    path = folder / "tokenizer.json"
    if not path.exists():
        path = folder / "vocab.txt"
    try:
        data = reading.read_bytes(path)
        found = _of_json(reading.parse_json(data)) if path.suffix == ".json" else _of_lines(data, folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read as BERT's tokenizer ({error}). {_ADVICE}") from error
    if problem := _problem(found.words):
        raise ConfigError(f"{path} is no vocabulary of BERT's kind: {problem}. {_ADVICE}")
    if len(found.words) > rows:
        raise ConfigError(f"{path} has {len(found.words):,} words; the word table has model.vocab = {rows:,} rows")
    return found


def _of_json(content: Mapping[str, Any]) -> Vocabulary:
    model, normalizer = content["model"], content["normalizer"]
    if model["type"] != "WordPiece" or normalizer["type"] != "BertNormalizer":
        raise ValueError(f"a {model['type']} model behind a {normalizer['type']}; needed are WordPiece, BertNormalizer")
    numbers = model["vocab"]
    words = sorted(numbers, key=numbers.__getitem__)
    if [numbers[word] for word in words] != list(range(len(words))):
        raise ValueError("its words are not numbered 0, 1, 2 …")
    return Vocabulary(tuple(words), bool(normalizer["lowercase"]), normalizer["strip_accents"])


def _of_lines(data: bytes, folder: Path) -> Vocabulary:
    words = data.decode().split("\n")
    words = [word.removesuffix("\r") for word in (words[:-1] if words[-1] == "" else words)]
    beside = folder / "tokenizer_config.json"
    options = reading.parse_json(reading.read_bytes(beside)) if beside.exists() else {}
    return Vocabulary(tuple(words), bool(options.get("do_lower_case", True)), options.get("strip_accents"))


def read_vectors(folder: Path, rows: int) -> Tensor:
    """The word table ``[rows, E]`` of a BERT-like model's folder, float32. Raises ConfigError."""
    vectors = None
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        try:
            vectors = _table_of(path)
        except (SafetensorError, OSError, *_TORCH_ERRORS) as error:
            raise ConfigError(f"{path} cannot be read ({str(error).splitlines()[0]}). {_ADVICE}") from error
        if vectors is not None:
            break
    if vectors is None:
        raise ConfigError(f"{folder} has no weights *.safetensors or *.bin that hold {_TABLE}. {_ADVICE}")
    if vectors.ndim != 2 or len(vectors) != rows or not vectors.is_floating_point():
        raise ConfigError(
            f"{folder} has word vectors of shape {list(vectors.shape)}; the table has model.vocab = {rows:,} rows. "
            "Set model.vocab to theirs, or give a model with BERT's vocabulary"
        )
    vectors = vectors.float()
    if not bool(vectors.isfinite().all()) or float(vectors.std()) == 0:
        raise ConfigError(f"{folder} has word vectors that are not finite or all alike. {_ADVICE}")
    return vectors


def _table_of(path: Path) -> Tensor | None:
    """The word table, if this file holds it; no other weight is read where the format allows it."""
    if path.suffix == ".safetensors":
        reading.open_plain(path).close()
        with safe_open(path, framework="pt") as file:
            name = next((name for name in file.keys() if name.endswith(_TABLE)), None)  # noqa: SIM118  (no mapping)
            return None if name is None else file.get_tensor(name)
    with reading.open_plain(path) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd pickles; no code in them is run
        weights = torch.load(opened, map_location="cpu", weights_only=True)
    found = next((weights[name] for name in weights if name.endswith(_TABLE)), None)
    if not (found is None or isinstance(found, Tensor)):
        raise ValueError(f"{_TABLE} is no tensor")
    return found


def fit_vectors(vectors_VE: Tensor, width: int, seed: int) -> Tensor:
    """Word vectors of another width, ``[V, width]``, with a standard deviation of 0.02.

    As wide: copied. Wider: their ``width`` main directions (PCA). Narrower: copied into the first columns, the others
    drawn from ``seed``.
    """
    wide = vectors_VE.shape[1]
    if wide > width:
        centred = vectors_VE.double() - vectors_VE.double().mean(dim=0)
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :width]
        # An axis has no sign of its own: its largest entry is made positive.
        signs = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
        vectors_VE = (centred @ (axes * signs)).float()
    vectors_VE = vectors_VE * (STD / vectors_VE.std())
    if wide < width:
        rest = torch.randn(len(vectors_VE), width - wide, generator=torch.Generator().manual_seed(seed))
        vectors_VE = torch.cat([vectors_VE, rest * STD], dim=1)
    return vectors_VE


@torch.no_grad()
def start_table(table: nn.Embedding, folder: Path, seed: int) -> None:
    """Begin a word table with the word vectors of a pretrained model. Raises ConfigError."""
    rows, width = table.weight.shape
    table.weight.copy_(fit_vectors(read_vectors(folder, rows), width, seed))


# ---------------------------------------------------------------- learned from captions


def learn_vocabulary(captions: Sequence[str], rows: int) -> Vocabulary:
    """A WordPiece vocabulary of at most ``rows`` words from the training captions: a function of how often each word
    occurs, whatever the order. Raises DataError when there is no text at all."""
    tokenizer = _tokenizer(True, None, {UNKNOWN: 0})
    letters = Counter[str]()
    for caption in captions:
        letters.update("".join(tokenizer.normalizer.normalize_str(caption).split()))
    if not letters:
        raise DataError("the training captions hold no text to learn words from")
    most = (rows - len(SPECIAL)) // 2
    kept = sorted(sorted(letters, key=lambda letter: (-letters[letter], letter))[:most])
    # The library numbers the letters in the order in which it meets them in a hash table, and decides between equally
    # frequent pairs by number: every run of it gives other words. Given beforehand, letters have numbers of their own.
    given = [*SPECIAL, *kept, *(f"##{letter}" for letter in kept)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=rows,
        min_frequency=2,
        special_tokens=given,
        initial_alphabet=kept,
        limit_alphabet=len(kept),
        show_progress=False,
    )
    with _one_thread():
        tokenizer.train_from_iterator(captions, trainer)
    numbers = tokenizer.get_vocab()
    return Vocabulary(tuple(sorted(numbers, key=numbers.__getitem__)))


@contextmanager
def _one_thread() -> Iterator[None]:
    """The library warns on standard error in every process that is forked after its threads were in use."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
