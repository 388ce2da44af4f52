"""From a question and an answer to tokens: the one form of text for training, evaluation and use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from sensorium.errors import ConfigError, DataError

PromptStyle = Literal["plain", "chat"]


@dataclass(frozen=True)
class Texts:
    """``style`` plain: the text, a new line, the target; chat: the tokenizer's own template. ``cut``: what is longer
    than ``length`` tokens loses the end of its target, instead of being refused."""

    tokenizer: PreTrainedTokenizerBase
    style: PromptStyle
    length: int
    cut: bool = False

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer of the language model has no end token; take another model")
        if self.style == "chat" and self.tokenizer.chat_template is None:
            raise ConfigError("the tokenizer has no chat template; set data.prompt_style to plain")

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def pad(self) -> int:
        """A number for padding, which the mask tells apart from the end."""
        found = self.tokenizer.pad_token_id
        return self.end if found is None else int(found)

    def prompt(self, text: str) -> list[int]:
        """What comes before an answer."""
        if self.style == "plain":
            return [int(one) for one in self.tokenizer(f"{text}\n")["input_ids"]]
        said = [{"role": "user", "content": text}]
        whole = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        return [int(one) for one in self.tokenizer(whole, add_special_tokens=False)["input_ids"]]

    def target(self, text: str) -> list[int]:
        """An answer and its end."""
        return [*(int(one) for one in self.tokenizer(text, add_special_tokens=False)["input_ids"]), self.end]

    def encode(self, text: str, target: str) -> tuple[list[int], list[int]]:
        """Prompt and target. Raises DataError when they are too long, or one of them is empty."""
        if not target.strip():
            raise DataError("the target is empty")
        prompt, answer = self.prompt(text), self.target(target)
        total = len(prompt) + len(answer)
        if total <= self.length:
            return prompt, answer
        if self.cut and len(prompt) < self.length:
            return prompt, answer[: self.length - len(prompt)]
        raise DataError(
            f"{total} tokens, of which the text has {len(prompt)}; at most {self.length} (data.max_length), or set "
            "data.too_long to truncate"
        )

    def count(self, text: str, target: str) -> int:
        """Tokens of both, however many."""
        return len(self.prompt(text)) + len(self.target(target))

    def said(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, up to the end."""
        kept = list(ids)
        kept = kept[: kept.index(self.end)] if self.end in kept else kept
        return str(self.tokenizer.decode(kept, skip_special_tokens=True)).strip()
