"""What the language model is asked: a question about the captions of what a user liked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sensorium.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CAPTIONS = "{captions}"
_TURNS = "Human: {question}\nAssistant:"
_QUESTIONS = {
    "POG": f"A person bought the following items: {CAPTIONS}. Describe this person's visual taste.",
    "SER": f"A person sent the following stickers: {CAPTIONS}. Describe this person's visual taste.",
}
_QUESTION = f"A person liked the following images: {CAPTIONS}. Describe this person's visual taste."
_NEGATIVE = "blurry, low quality, distorted, deformed, ugly, bad anatomy, watermark"
_MORE_NEGATIVE = {"POG": ", face, portrait", "SER": ", photorealistic, 3d, realistic"}
_PREFACE = "What follows says what a person likes to look at, and what such pictures have in common. "


def template_of(dataset: str, given: str | None) -> str:
    """The prompt with ``{captions}``; ``given`` replaces all of it."""
    return given or _TURNS.replace("{question}", _QUESTIONS.get(dataset.upper(), _QUESTION))


def negative_prompt_of(dataset: str, given: str | None) -> str:
    """What generated pictures shall not be."""
    return _NEGATIVE + _MORE_NEGATIVE.get(dataset.upper(), "") if given is None else given


@dataclass(frozen=True)
class Prompts:
    """Histories as tokens. ``longest``: tokens of a prompt at most; ``between``: what parts the numbered captions."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    longest: int
    between: str = " "

    def encode(self, captions: Sequence[str]) -> tuple[list[int], bool]:
        """Tokens of the prompt, beginning of text included, and whether captions were cut, evenly, to fit.

        Raises DataError where the question alone is too long.
        """
        ids = self._ids(captions)
        if len(ids) <= self.longest:
            return ids, False
        words = [self.tokenizer(caption, add_special_tokens=False)["input_ids"] for caption in captions]
        low, high = 0, max(map(len, words))  # so many tokens of each caption
        best: list[int] | None = None
        while low <= high:
            middle = (low + high) // 2
            ids = self._ids([self.tokenizer.decode(one[:middle]).strip() for one in words])
            if len(ids) <= self.longest:
                best, low = ids, middle + 1
            else:
                high = middle - 1
        if best is None:
            raise DataError(
                f"the question about {len(captions)} pictures has {len(ids)} tokens without their captions, "
                f"{self.longest} are allowed; set model.max_sequence_length higher"
            )
        return best, True

    def _ids(self, captions: Sequence[str]) -> list[int]:
        numbered = self.between.join(f"{number}. {caption}" for number, caption in enumerate(captions, start=1))
        found: list[int] = self.tokenizer(self.template.replace(CAPTIONS, numbered), add_special_tokens=False)[
            "input_ids"
        ]
        begin = self.tokenizer.bos_token_id
        return found if begin is None or found[:1] == [begin] else [begin, *found]

    @property
    def padding(self) -> int:
        """Any id: padding is known by the mask."""
        return int(self.tokenizer.pad_token_id or 0)


def preface(tokenizer: PreTrainedTokenizerBase, count: int) -> list[int]:
    """The first tokens of a neutral text, beginning of text included; from it the prefix takes its first values."""
    if not count:
        return []
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    words = tokenizer(_PREFACE, add_special_tokens=False)["input_ids"]
    if not words:
        raise ConfigError("the language model's tokenizer makes nothing of plain English; give another model")
    return (begin + words * (count // len(words) + 1))[:count]
