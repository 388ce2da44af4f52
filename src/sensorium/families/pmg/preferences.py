"""The words of a sample's taste: those that came with the data, or keywords from its own history.

Words that came with the data may have been made from what the user chose later, the target included; whoever reads the
results is told. Keywords of a history have seen nothing else (the leak rule).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sensorium.data.tastes import Taste
from sensorium.errors import ConfigError, DataError
from sensorium.families.pmg.keywords import TARGET_ASKED, TARGET_KEPT, Answer, parse

Rule = Literal["auto", "history", "file", "off"]
Origin = Literal["history", "supplied", "none"]
SAID: Mapping[Origin, str] = {
    "history": "keywords of the sample's own history",
    "supplied": "preferences supplied",
    "none": "no keywords",
}
NOTHING = "the answer holds no keywords; the style part is empty"


@dataclass(frozen=True)
class Preference:
    """``words``: keywords, in their order; ``style``: the text they make, or came in; ``raw``: the language model's
    answer; ``note``: what went wrong with it. ``target``: what is drawn instead of the caption, None: the caption;
    ``target_raw``: the answer that it is from."""

    words: tuple[str, ...] = ()
    style: str = ""
    origin: Origin = "none"
    raw: str | None = None
    note: str | None = None
    target: str | None = None
    target_raw: str | None = None

    @classmethod
    def supplied(cls, style: str) -> Preference:
        """Words that came with the data, between commas."""
        words = tuple(word for part in style.split(",") if (word := part.strip()))
        return cls(words, style, "supplied" if words else "none")

    def text(self, times: int = 1) -> str:
        """The style, written so many times."""
        return ", ".join([self.style] * times) if self.style else ""


def origins(tastes: Sequence[Taste], rule: Rule, needed: bool) -> list[Origin]:
    """Where the words of each sample come from. ``needed``: whether anything uses them.

    Raises ConfigError where they were asked for in vain, DataError where ``file`` finds none.
    """
    if not needed:
        if rule in ("history", "file"):
            raise ConfigError(
                f"keywords {rule}: nothing uses them; take mode target_soft_style or keywords, or select among pictures"
            )
        return ["none"] * len(tastes)
    if rule == "off":
        return ["none"] * len(tastes)
    without = [taste for taste in tastes if not taste.style]
    if rule == "file" and without:
        raise DataError(
            f"{without[0].where}: user {without[0].user!r} has no style ({len(without)} of {len(tastes)} samples have "
            "none); give --preferences FILE that names every user, or --keywords history"
        )
    return ["supplied" if taste.style and rule != "history" else "history" for taste in tastes]


def collect(
    tastes: Sequence[Taste],
    found: Sequence[Origin],
    count: int,
    ask: Callable[[Sequence[tuple[str, ...]]], Mapping[tuple[str, ...], Answer]],
) -> list[Preference]:
    """The words themselves. ``ask``: gives the answers about histories; not called where none is needed."""
    histories = [captions(taste) for taste, origin in zip(tastes, found, strict=True) if origin == "history"]
    said = ask(histories) if histories else {}
    preferences = []
    for taste, origin in zip(tastes, found, strict=True):
        if origin == "history":
            answer = said[captions(taste)]
            words = parse(answer.text, count, cut=answer.cut)
            preferences.append(Preference(words, ", ".join(words), origin, answer.text, None if words else NOTHING))
        else:
            preferences.append(Preference.supplied(taste.style if origin == "supplied" else ""))
    return preferences


def of_target(one: Preference, answer: Answer) -> Preference:
    """With the first five keywords of the target instead of its caption; without keywords it stays the caption."""
    words = parse(answer.text, TARGET_ASKED, cut=answer.cut)[:TARGET_KEPT]
    return replace(one, target=", ".join(words) or None, target_raw=answer.text)


def captions(taste: Taste) -> tuple[str, ...]:
    """Of its history."""
    return tuple(liked.caption for liked in taste.history)
