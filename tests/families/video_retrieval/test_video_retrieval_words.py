"""CLIP's words: as transformers has them, cut so that the end stays, and one line for what does not fit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from sensorium.errors import ConfigError, DataError
from sensorium.families.video_retrieval.config import ModelConfig
from sensorium.families.video_retrieval.words import END, START, WORD_END, Words, open_tokenizer, read_tokenizer

TEXTS = (
    "a dog rowing a boat",
    "It's  3 o'clock,\n and THEY'VE gone!!",
    "Café naïve Straße 犬 🐕 ﬁne",
    "x",
    "<|endoftext|> in the middle",
    "he said: \u201cno\u201d #1 a_b-c 12345",
)


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """Bytes, bytes at the end of a word, and some merges, as CLIP's files hold them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(sign + WORD_END for sign in alphabet)]
    merges = ["d o", f"do g{WORD_END}", f"a t{WORD_END}", "h e", f"i n{WORD_END}"]
    tokens += ["".join(merge.split()) for merge in merges]
    return {token: number for number, token in enumerate([*tokens, START, END])}, merges


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CLIP's configuration with such a vocabulary."""
    numbers, merges = vocabulary()
    (tmp_path / "vocab.json").write_text(json.dumps(numbers))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    write_config(tmp_path, len(numbers))
    return tmp_path


def write_config(folder: Path, size: int) -> None:
    text = {"vocab_size": size, "eos_token_id": size - 1, "max_position_embeddings": 20, "hidden_size": 8}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "hidden_act": "gelu"}
    vision = {"image_size": 16, "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"intermediate_size": 8, "hidden_act": "gelu"}
    content = {"model_type": "clip", "projection_dim": 8, "text_config": text, "vision_config": vision}
    (folder / "config.json").write_text(json.dumps(content))


def opened(clip: str | Path, length: int = 16) -> Words:
    return open_tokenizer(ModelConfig(clip=str(clip)), length)


def test_the_same_tokens_as_transformers(folder: Path) -> None:
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(folder)
    ours = opened(folder, 20)
    whole = Words(ours.tokenizer, 200)
    for text in TEXTS:
        if START not in text and END not in text:
            assert whole.numbers(text)[0] == theirs(text)["input_ids"]
    numbers = whole.numbers("a dog")[0]
    assert numbers == [ours.start, *theirs.convert_tokens_to_ids([f"a{WORD_END}", f"dog{WORD_END}"]), ours.end]
    theirs.save_pretrained(folder / "saved")  # tokenizer.json
    write_config(folder / "saved", len(vocabulary()[0]))
    assert not (folder / "saved" / "merges.txt").exists()
    assert [opened(folder / "saved").numbers(text) for text in TEXTS] == [
        opened(folder).numbers(text) for text in TEXTS
    ]


@pytest.mark.parametrize("clip", ["random:tiny", "folder"])
def test_an_end_in_the_middle_is_text_like_any_other(folder: Path, clip: str) -> None:
    words = opened(folder if clip == "folder" else clip)
    numbers, _ = Words(words.tokenizer, 70).numbers(f"a {END} b")
    assert numbers.count(words.end) == 1
    assert numbers[-1] == words.end


def test_bytes_are_the_words_of_a_random_clip() -> None:
    words = opened("random:tiny")
    assert (words.size, words.start, words.end) == (514, 512, 513)
    numbers, cut = words.numbers("Hi there")
    assert not cut
    assert len(numbers) == 2 + len("hi") + len("there")
    assert numbers == words.numbers("hi  THERE")[0]
    assert numbers != words.numbers("hithere")[0]  # the end of a word is told apart


def test_cutting_keeps_the_end() -> None:
    words = opened("random:tiny", 10)
    ids, mask = words.encode(["ab", "abcdefghijklmnop"])
    assert ids.shape == mask.shape == (2, 10)
    assert mask.sum(1).tolist() == [4, 10]
    assert ids[0].tolist()[3:] == [words.end] * 7  # what follows is filled with ends, as CLIP does it
    assert ids[1, 0] == words.start
    assert ids[1, 9] == words.end
    assert words.end not in ids[1, :9]
    assert words.cut(["ab", "abcdefghijklmnop"]) == 1


def test_loader_processes_get_the_same_words() -> None:
    words = opened("random:tiny")
    again = pickle.loads(pickle.dumps(words))
    assert [again.numbers(text) for text in TEXTS] == [words.numbers(text) for text in TEXTS]


@pytest.mark.parametrize("text", ["", "  \n", "half \ud83d"])
def test_what_is_no_text_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        opened("random:tiny").encode([text])


def _merges(folder: Path, line: str) -> None:
    (folder / "merges.txt").write_text(f"#version: 0.2\n{line}\n")


def _whole(folder: Path, content: Any) -> None:
    (folder / "tokenizer.json").write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "vocab.json").unlink(), "no tokenizer beside the model"),
        (lambda f: (f / "vocab.json").write_text("[1]"), "expected words and their numbers"),
        (lambda f: (f / "vocab.json").write_text('{"a": 0}'), "it lacks"),
        (lambda f: _merges(f, "a b c"), "expected pairs of pieces"),
        (lambda f: _merges(f, "q q"), "lacks what the merge q q needs"),
        (lambda f: _whole(f, "{"), "cannot be used"),
        (lambda f: _whole(f, {"model": {"type": "WordPiece"}}), "expected byte-pair encoding"),
        (lambda f: _whole(f, {"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}), "words and their numbers"),
        (lambda f: write_config(f, 514), "they do not belong together"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_one_line(folder: Path, damage: Any, reason: str) -> None:
    damage(folder)
    with pytest.raises(ConfigError, match=reason) as caught:
        opened(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_tokens_than_the_model_reads_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="reads 20 tokens at most"):
        opened(folder, 21)
    assert read_tokenizer(folder).get_vocab_size() == len(vocabulary()[0])
