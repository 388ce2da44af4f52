"""A user's taste in words: the language model names keywords for what a history's captions have in common.

The question ends with the opening of the answer, "1.", so that also a small model begins the list. Its raw answer is
kept, in the cache by content and in ``info.json``; what is not a keyword in it is left out.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from sensorium import reading
from sensorium.data.files import cache_folder
from sensorium.engine.contract import Host
from sensorium.families.pmg.config import ModelConfig
from sensorium.families.pmg.folders import llm_folder, part_digest
from sensorium.families.pmg.language import open_tokenizer, read_config
from sensorium.families.pmg.prompts import CAPTIONS, Prompts
from sensorium.files import new_file, open_file
from sensorium.parts.encoders_base import load_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

About = Literal["taste", "target"]
COUNT = 8  # keywords
TARGET_ASKED, TARGET_KEPT = 10, 5  # keywords of a target that are asked for, and those that are used
History = tuple[str, ...]  # captions
_FORMAT = 1  # of the cache: a change of the question or of how it is asked
_NEW_TOKENS = 100
_ROWS = 8  # histories that are asked about at a time
_LONGEST_WORDS, _LONGEST = 4, 40  # of a keyword: words, characters
_QUESTION = (
    "A person chose the things below. Name the person's taste in exactly {count} short keywords: subject, colour, "
    "material, mood, style. Do not name kinds of objects. Answer as a numbered list only.\n\nThings:\n{things}"
)
_TARGET_QUESTION = (
    "Read the description of a picture. Name exactly {count} short keywords of what it shows: subject, colour, "
    "material, mood, style. Answer as a numbered list only.\n\nDescription:\n{things}"
)
_TARGET_THINGS = ("a bright yellow teapot with small flowers on a wooden table",)
_TARGET_EXAMPLE = (
    *("teapot", "yellow", "flowers", "wooden table", "ceramic"),
    *("cheerful", "rustic", "bright", "still life", "homely"),
)
_EXAMPLE_THINGS = (
    "a bright yellow teapot with small flowers",
    "a straw hat on a sunny wall",
    "a lemon cake on a wooden table",
)
_EXAMPLE = (
    *("yellow", "sunny", "floral", "rustic", "wood", "cheerful"),
    *("warm light", "country style", "homely", "pastel"),
)
_WORDED = {
    "taste": (_QUESTION, _EXAMPLE_THINGS, _EXAMPLE),
    "target": (_TARGET_QUESTION, _TARGET_THINGS, _TARGET_EXAMPLE),
}
_OPENING = "1."
_USER, _ASSISTANT = "Human: ", "Assistant: "
_ITEM = re.compile(r"(?:^|(?<=\s))[(\[（【]?\d{1,2}[.)\]:、．）】](?!\d)\s*|^\s*[-*•·]\s+", re.MULTILINE)  # noqa: RUF001
_COMMAS = re.compile(r"[,;，、；،。\n|]")  # noqa: RUF001
_LABEL = re.compile(r"^(?:subject|colou?r|material|mood|style|theme|taste|keywords?)s?\s*[:：]\s*", re.IGNORECASE)  # noqa: RUF001
_EXPLAINED = re.compile(r"\s+[-–—]\s+|\s*[(（:：]")  # noqa: RUF001


@dataclass(frozen=True)
class Answer:
    """What the model said, the opening included; ``cut``: it had not come to an end."""

    text: str
    cut: bool


def number(items: Sequence[str]) -> str:
    """A numbered list, one a line."""
    return "\n".join(f"{place}. {item}" for place, item in enumerate(items, start=1))


def parse(answer: str, count: int = COUNT, *, cut: bool = False) -> tuple[str, ...]:
    """At most ``count`` keywords of an answer in any script, without repeats. Empty: there are none.

    Items of a numbered or dotted list count; if that gives fewer than half of them, what stands between commas. An item
    of more than four words is prose. ``cut``: the last item may be half a word, and is left out.
    """
    said = answer.partition(f"\n{_USER.strip()}")[0]  # a next turn that the model made up
    pieces = list(_items(said))
    listed = _kept(pieces[:-1] if cut and pieces else pieces, count)
    if len(listed) * 2 >= count:
        return listed
    parts = _COMMAS.split(_ITEM.sub(",", said))
    between = _kept(parts[:-1] if cut else parts, count)
    return between if len(between) > len(listed) else listed


def _items(said: str) -> Iterator[str]:
    """What follows each marker, to the end of its line or the next one."""
    places = [*_ITEM.finditer(said)]
    for place, following in zip(places, [*places[1:], None][: len(places)], strict=True):
        end = len(said) if following is None else following.start()
        yield said[place.end() : end].strip().partition("\n")[0]


def _kept(pieces: Sequence[str], count: int) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for piece in pieces:
        word = _clean(piece)
        if word and len(word) <= _LONGEST and len(word.split()) <= _LONGEST_WORDS:
            found.setdefault(word.casefold(), word)
    return tuple(found.values())[:count]


def _clean(piece: str) -> str:
    """Without label, explanation, quotes and marks at its ends."""
    text = _LABEL.sub("", _bare(piece.replace("**", "")))
    return " ".join(_bare(_EXPLAINED.split(text, maxsplit=1)[0]).split())


def _bare(text: str) -> str:
    """From its first letter or digit to its last."""
    places = [place for place, one in enumerate(text) if unicodedata.category(one)[0] in "LMN"]
    return text[places[0] : places[-1] + 1] if places else ""


def question(tokenizer: PreTrainedTokenizerBase, count: int = COUNT, about: About = "taste") -> str:
    """The prompt with ``{captions}``: in the model's chat template if it has one, else in plain turns."""
    words, things, example = _WORDED[about]
    asked = [
        words.format(count=len(example[:count]), things=number(things)),
        number(example[:count]),
        words.format(count=count, things=CAPTIONS),
        _OPENING,
    ]
    if tokenizer.chat_template is None:
        return "\n\n".join(f"{_ASSISTANT if place % 2 else _USER}{text}" for place, text in enumerate(asked))
    turns = [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(asked)]
    found: str = tokenizer.apply_chat_template(turns, tokenize=False, continue_final_message=True)  # type: ignore[assignment]
    return found


def ask(model: ModelConfig, histories: Sequence[History], how: Asking, host: Host) -> dict[History, Answer]:
    """The model's answer for each different history, or description of a target. The language model is opened only
    where the cache lacks one, and is gone when this returns. Raises ConfigError, and DataError for one that is too
    long."""
    folder = llm_folder(model)
    config = read_config(folder, model.llm)
    tokenizer = open_tokenizer(folder, model.llm)
    prompts = Prompts(
        tokenizer, question(tokenizer, how.count, how.about), config.max_position_embeddings - _NEW_TOKENS, between="\n"
    )
    kept = _Kept(cache_folder(f"pmg-keywords-{_FORMAT}"), [part_digest(folder), str(how.dtype), prompts.template])
    different = list(dict.fromkeys(histories))
    found = {history: answer for history in different if (answer := kept.get(history)) is not None}
    wanted = [history for history in different if history not in found]
    if not wanted:
        return found
    whole = _open(folder, model.llm, how)
    with host.progress("keywords", len(wanted)) as advance:
        for start in range(0, len(wanted), _ROWS):
            some = wanted[start : start + _ROWS]
            for history, answer in zip(some, answers(whole, prompts, some), strict=True):
                found[history] = answer
                kept.put(history, answer)
            advance(start + len(some), len(wanted))
    del whole
    if how.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return found


@dataclass(frozen=True)
class Asking:
    """``count``: of keywords; ``dtype``: of the language model; ``about``: what the captions are."""

    count: int = COUNT
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    about: About = "taste"


def _open(folder: Path, name: str, how: Asking) -> PreTrainedModel:
    """The language model with its output head."""
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    found: PreTrainedModel = load_pretrained(load, folder, name, dtype=how.dtype, kind="language model")
    return found.eval().requires_grad_(False).to(how.device)


@torch.no_grad()
def answers(model: PreTrainedModel, prompts: Prompts, histories: Sequence[History]) -> list[Answer]:
    """Greedy, at most 100 new tokens; shorter prompts are padded on the left."""
    from transformers import GenerationConfig

    asked = [prompts.encode(history)[0] for history in histories]
    longest = max(map(len, asked))
    device = next(model.parameters()).device
    ids = torch.tensor([[prompts.padding] * (longest - len(one)) + one for one in asked], device=device)
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in asked], device=device)
    own = model.generation_config
    end = None if own is None else own.eos_token_id
    ends = {*(end if isinstance(end, list) else [] if end is None else [end]), prompts.tokenizer.eos_token_id} - {None}
    how = GenerationConfig(
        do_sample=False, max_new_tokens=_NEW_TOKENS, eos_token_id=sorted(ends) or None, pad_token_id=prompts.padding
    )
    said = model.generate(ids, attention_mask=mask, generation_config=how)[:, longest:].tolist()  # type: ignore[operator]
    found = []
    for row in said:
        length = next((place for place, one in enumerate(row) if one in ends), len(row))
        text = prompts.tokenizer.decode(row[:length], skip_special_tokens=True)
        found.append(Answer(f"{_OPENING}{text}", length == _NEW_TOKENS))
    return found


class _Kept:
    """Answers in the cache, a file each, by model, question and captions."""

    def __init__(self, folder: Path, of: Sequence[str]) -> None:
        self.folder, self.of = folder, of

    def _path(self, history: History) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps([*self.of, *history]).encode()).hexdigest()}.json"

    def get(self, history: History) -> Answer | None:
        """None also for a file that something else has damaged: it is asked anew."""
        try:
            found = reading.parse_json(reading.read_bytes(self._path(history)))
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or not isinstance(found.get("answer"), str):
            return None
        return Answer(found["answer"], found.get("cut") is True)

    def put(self, history: History, answer: Answer) -> None:
        content = json.dumps({"answer": answer.text, "cut": answer.cut}, ensure_ascii=False)
        with new_file(self._path(history)) as path, open_file(path, "wb") as file:
            file.write(content.encode())
