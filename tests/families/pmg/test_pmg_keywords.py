"""Keywords of a taste: awkward answers, the question, the cache, and whose words they are."""

from __future__ import annotations

import gc
import itertools
import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from sensorium.data.tastes import Liked, Taste
from sensorium.engine.contract import Host
from sensorium.errors import ConfigError, DataError
from sensorium.families.pmg import keywords, preferences
from sensorium.families.pmg.config import ModelConfig
from sensorium.families.pmg.keywords import Answer, Asking, parse
from sensorium.families.pmg.language import open_tokenizer
from sensorium.families.pmg.prompts import CAPTIONS, Prompts
from sensorium.families.pmg.tiny import LLM, tiny_folder

TINY = ModelConfig(llm="random:tiny")
HISTORIES = [("a red circle", "a red ring"), ("a blue square",), ("a green cross", "a green star", "a green ring")]
# What SmolLM2-135M-Instruct said, greedily, about four histories.
REAL = {
    "1. old wooden boat\n2. fog\n3. grey heron\n4. pine trees\n5. misty lake": (
        *("old wooden boat", "fog", "grey heron", "pine trees", "misty lake"),
    ),
    "1. pink\n2. peach\n3. pastel\n4. chocolate\n5. chocolate cake\n6. chocolate\n7. chocolate cake": (
        *("pink", "peach", "pastel", "chocolate", "chocolate cake"),
    ),
    "1. man\n2. old fisherman\n3. black and white\n4. portrait of an old fisherman\n5. old fisherman": (
        *("man", "old fisherman", "black and white"),
    ),
    "1. red\n2. red\n3. red\n4. red\n5. red\n6. red\n7. red\n8. red": ("red",),
}
AWKWARD = {
    "": (),
    "1.": (),
    "1. red": ("red",),
    "1. red\n2) blue\n(3) round\n[4] soft\n5: wool": ("red", "blue", "round", "soft", "wool"),
    '1. "red"\n2. «blue»\n3. “round”.\n4. *soft*!\n5. **wool**': ("red", "blue", "round", "soft", "wool"),
    "1. Red\n2. RED\n3. red.\n4. blue": ("Red", "blue"),
    "1. red 2. blue 3. round 4. soft": ("red", "blue", "round", "soft"),
    "1. red, blue; round, soft and calm": ("red", "blue", "round", "soft and calm"),
    "1. Colour: red\n2. Mood: calm\n3. Style - minimal\n4. Material: wool": ("red", "calm", "Style", "wool"),
    "1. red (a warm colour)\n2. calm: quiet scenes\n3. wool - soft\n4. art deco": ("red", "calm", "wool", "art deco"),
    "1. red\n\nThis person clearly likes warm colours, and round things.": (*("red", "and round things"),),
    "I think that this person likes the colour red most of all": (),
    "- red\n- blue\n* round\n• soft": ("red", "blue", "round", "soft"),
    "1. an extremely long way to say red\n2. blue\n3. round\n4. soft\n5. wool": ("blue", "round", "soft", "wool"),
    "1. 红色\n2. 圆形\n3. 温暖的光\n4. 红色": ("红色", "圆形", "温暖的光"),
    "1、红色\n2、圆形\n3、柔和\n4、简约": ("红色", "圆形", "柔和", "简约"),
    "1. красный\n2. КРАСНЫЙ\n3. тёплый свет\n4. круглый\n5. шерсть": ("красный", "тёплый свет", "круглый", "шерсть"),
    "1. أحمر\n2. دائري\n3. دافئ\n4. ناعم": ("أحمر", "دائري", "دافئ", "ناعم"),
    "١. أحمر\n٢. دائري\n٣. دافئ\n٤. ناعم": ("أحمر", "دائري", "دافئ", "ناعم"),  # noqa: RUF001
    "1. लाल\n2. गोल\n3. नीली रोशनी\n4. ऊन": ("लाल", "गोल", "नीली रोशनी", "ऊन"),
    "1. ❤\n2. !!!\n3. ...\n4. red": ("red",),
    "1. 1990s\n2. 2.5 tone\n3. 70s\n4. 3d": ("1990s", "2.5 tone", "70s", "3d"),
    "\n".join(f"{place}. word{place}" for place in range(1, 30)): tuple(f"word{place}" for place in range(1, 9)),
    "1. red\n2. blue\n3. round\n4. soft\nHuman: Things:\n1. a bus\nAssistant: 1.": (
        "red",
        "blue",
        "round",
        "soft",
    ),
}


@pytest.mark.parametrize("answer", [*REAL, *AWKWARD])
def test_the_parser_finds_the_keywords(answer: str) -> None:
    assert parse(answer) == {**REAL, **AWKWARD}[answer]


def test_half_a_word_is_left_out_and_the_count_is_kept() -> None:
    answer = "1. red\n2. blue\n3. round\n4. soft\n5. cheerf"
    assert parse(answer)[-1] == "cheerf"
    assert parse(answer, cut=True) == ("red", "blue", "round", "soft")
    assert parse(answer, 2) == ("red", "blue")
    assert parse("red, blue, gre", 4, cut=True) == ("red", "blue")


def test_the_question_is_in_turns_that_end_with_the_opening() -> None:
    tokenizer = open_tokenizer(tiny_folder(LLM), "tiny")
    assert tokenizer.chat_template is None
    plain = keywords.question(tokenizer)
    assert plain.count(CAPTIONS) == 1
    assert plain.count("in exactly 8 short keywords") == 2
    assert plain.startswith("Human: A person chose the things below.")
    assert plain.endswith(f"Things:\n{CAPTIONS}\n\nAssistant: 1.")
    target = keywords.question(tokenizer, 10, "target")
    assert target.startswith("Human: Read the description of a picture. Name exactly 10 short keywords")
    assert target.endswith(f"Description:\n{CAPTIONS}\n\nAssistant: 1.")
    turn = "{{ '<' + message.role + '>' + message.content + ('' if loop.last else '<end>') }}"
    tokenizer.chat_template = "{% for message in messages %}" + turn + "{% endfor %}"
    found = keywords.question(tokenizer, 3)
    assert found.startswith("<user>A person chose")
    assert "<assistant>1. yellow\n2. sunny\n3. floral<end><user>" in found
    assert found.endswith(f"{CAPTIONS}<end><assistant>1.")


def test_answers_do_not_depend_on_the_others_of_a_batch() -> None:
    folder = tiny_folder(LLM)
    tokenizer = open_tokenizer(folder, "tiny")
    prompts = Prompts(tokenizer, keywords.question(tokenizer), 1900, between="\n")
    assert "1. a red circle\n2. a red ring" in tokenizer.decode(prompts.encode(HISTORIES[0])[0])
    model = keywords._open(folder, "tiny", Asking())
    together = keywords.answers(model, prompts, HISTORIES)
    assert together == [keywords.answers(model, prompts, [one])[0] for one in HISTORIES]
    assert all(answer.text.startswith("1.") for answer in together)
    assert len({answer.text for answer in together}) == len(HISTORIES)


def test_a_history_is_asked_about_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[tuple[str, ...]]] = []
    opened: list[weakref.ref[torch.nn.Module]] = []
    really = keywords._open

    def noted(folder: Path, name: str, how: Asking) -> PreTrainedModel:
        found = really(folder, name, how)
        opened.append(weakref.ref(found))
        return found

    monkeypatch.setattr(keywords, "_open", noted)

    def said(model: object, prompts: Prompts, histories: Sequence[tuple[str, ...]]) -> list[Answer]:
        asked.append(list(histories))
        return [Answer(f"1. {one[0]}", False) for one in histories]

    monkeypatch.setattr(keywords, "answers", said)
    first = keywords.ask(TINY, [HISTORIES[0], HISTORIES[1], HISTORIES[0]], Asking(), Host())
    assert asked == [HISTORIES[:2]]
    assert first[HISTORIES[1]].text == "1. a blue square"
    with monkeypatch.context() as patch:
        patch.setattr(keywords, "_open", lambda *_: pytest.fail("the model was opened for nothing"))
        assert keywords.ask(TINY, HISTORIES[:2], Asking(), Host()) == first
    keywords.ask(TINY, [*HISTORIES[:2], HISTORIES[1][::-1], HISTORIES[2]], Asking(), Host())
    assert asked[1:] == [[HISTORIES[2]]]
    keywords.ask(TINY, HISTORIES[:1], Asking(count=5), Host())  # another question
    keywords.ask(TINY, [HISTORIES[0][::-1]], Asking(), Host())  # another order
    assert len(asked) == 4
    gc.collect()
    assert [found() for found in opened] == [None] * 4  # the language model is gone when it has answered
    for path in (tmp_path / "cache").glob("pmg-keywords-*/*.json"):
        path.write_text(json.dumps({"answer": 3}))
    keywords.ask(TINY, HISTORIES[:1], Asking(), Host())
    assert asked[4:] == [HISTORIES[:1]]  # damaged: asked anew


def taste(user: str, *captions: str, style: str = "", target: str = "a ring") -> Taste:
    liked = tuple(Liked(one, one, Path()) for one in captions)
    return Taste(user, liked, Liked("target", target, Path()), style, f"file, object {user}")


def test_words_come_from_the_history_alone_or_are_called_supplied() -> None:
    tastes = [taste("a", "a red circle", target="a secret"), taste("b", "a blue square", style="blue,  calm ")]
    asked: list[tuple[str, ...]] = []

    def ask(histories: Sequence[tuple[str, ...]]) -> Mapping[tuple[str, ...], Answer]:
        asked.extend(histories)
        return {one: Answer("1. red\n2. warm", False) for one in histories}

    found = preferences.origins(tastes, "auto", True)
    assert found == ["history", "supplied"]
    first, second = preferences.collect(tastes, found, 8, ask)
    assert (first.words, first.text(), first.text(2)) == (("red", "warm"), "red, warm", "red, warm, red, warm")
    assert (second.words, second.text(), second.raw) == (("blue", "calm"), "blue,  calm ", None)
    assert asked == [("a red circle",)]
    assert "secret" not in str(asked)
    assert [preferences.SAID[one] for one in found] == ["keywords of the sample's own history", "preferences supplied"]
    assert preferences.origins(tastes, "history", True) == ["history", "history"]
    for rule, needed in itertools.product(("auto", "off"), (True, False)):
        if (rule, needed) != ("auto", True):
            assert preferences.origins(tastes, rule, needed) == ["none", "none"]
    assert preferences.collect(tastes, ["none", "none"], 8, lambda _: pytest.fail("asked"))[0].text() == ""
    with pytest.raises(DataError, match=r"object a: user 'a' has no style \(1 of 2 samples"):
        preferences.origins(tastes, "file", True)
    with pytest.raises(ConfigError, match="keywords history: nothing uses them"):
        preferences.origins(tastes, "history", False)
    nothing = preferences.collect(tastes[:1], ["history"], 8, lambda all_: {one: Answer("1.", False) for one in all_})
    assert (nothing[0].words, nothing[0].raw, nothing[0].note) == ((), "1.", preferences.NOTHING)


def test_a_long_history_is_cut_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = open_tokenizer(tiny_folder(LLM), "tiny")
    shortest = len(Prompts(tokenizer, keywords.question(tokenizer), 10**6, between="\n").encode(["", ""])[0])
    prompts = Prompts(tokenizer, keywords.question(tokenizer), shortest + 30, between="\n")
    ids, cut = prompts.encode(["red " * 200, "blue " * 200])
    assert cut
    assert len(ids) <= shortest + 30
    assert tokenizer.decode(ids).endswith("1.")
    with pytest.raises(DataError, match="without their captions"):
        Prompts(tokenizer, keywords.question(tokenizer), shortest - 1, between="\n").encode(["red", "blue"])
    assert torch.is_grad_enabled()
