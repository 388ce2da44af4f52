"""Which of the closed answers of a question a model holds for the likeliest, whatever it would write.

Legend: B rows, K answers of a question, M tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sensorium.data.fields import grammar
from sensorium.data.fields.tree import Entry
from sensorium.families.climate_text.attention import with_tokens
from sensorium.families.climate_text.controls import asked
from sensorium.families.climate_text.padding import prompt_mask

if TYPE_CHECKING:
    from sensorium.families.climate_text.model import ClimateTextFusion

MOST = 32  # of a question about one of more channels no answer is ranked: each costs as much as a row of its own
_CLIMATE = ("climate_tokens", "token_lat", "token_lon", "token_mask", "field_given")


def closed(entry: Entry, labels: Sequence[str]) -> dict[str, str]:
    """Each answer that the question of an entry has, and its sentence; none of an open question. ``labels``: what the
    channels are called."""
    kind, facts = asked(entry)
    found = grammar.candidates(kind, facts, labels)
    return found if facts.get(kind) in found and len(found) <= MOST else {}


def pack(rows: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """The tokens of the answers of each row, ``[B, K, M]`` int64, -1 where there are none."""
    most = max((len(answers) for answers in rows), default=0)
    longest = max((len(ids) for answers in rows for ids in answers), default=0)
    packed = torch.full((len(rows), most, longest), -1)
    for row, answers in enumerate(rows):
        for number, ids in enumerate(answers):
            packed[row, number, : len(ids)] = torch.tensor(ids)
    return packed


@torch.no_grad()
def likeliest(model: ClimateTextFusion, batch: Mapping[str, Tensor]) -> Tensor:
    """The number of the answer with the least loss, summed over its tokens, ``[B]`` int64; -1 of rows without answers.

    ``candidates`` ``[B, K, M]`` of the batch, where it has any: see ``pack``. Its targets are not looked at.
    """
    found = torch.full((len(batch["input_ids"]),), -1, device=batch["input_ids"].device)
    answers_BKM = batch.get("candidates")
    if answers_BKM is None or not answers_BKM.numel():
        return found
    batch, prompt_BS = with_tokens(model, batch), prompt_mask(batch)
    for row in (answers_BKM[:, 0, 0] >= 0).nonzero()[:, 0].tolist():
        answers_KM = answers_BKM[row][answers_BKM[row, :, 0] >= 0]
        count = len(answers_KM)
        prompt = batch["input_ids"][row][prompt_BS[row]].expand(count, -1)
        there = answers_KM >= 0
        climate = {name: batch[name][row].expand(count, *batch[name].shape[1:]) for name in _CLIMATE if name in batch}
        ranked = {
            **climate,
            "input_ids": torch.cat([prompt, answers_KM.clamp_min(0)], dim=1),
            "attention_mask": torch.cat([torch.ones_like(prompt, dtype=torch.bool), there], dim=1),
            "target_mask": torch.cat([torch.zeros_like(prompt, dtype=torch.bool), there], dim=1),
        }
        found[row] = model(ranked).per_row(count).argmin()
    return found
