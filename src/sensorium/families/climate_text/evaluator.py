"""Perplexity, facts and words of the answers; and whether the field was used, by two controls and the commonest answer.

Legend: B rows of a batch, N entries of the split, K controls, M tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.data.fields import grammar
from sensorium.data.fields.tree import Entry
from sensorium.engine.contract import Batch, Evaluation, Source, Table
from sensorium.engine.settings import RunConfig
from sensorium.errors import DataError
from sensorium.families.climate_text import scoring
from sensorium.families.climate_text.assumed import assumed
from sensorium.families.climate_text.attention import looked_at
from sensorium.families.climate_text.controls import CONTROLS, asked
from sensorium.families.climate_text.data import EvalSource, collate
from sensorium.families.climate_text.data import texts as texts_of
from sensorium.families.climate_text.gallery import Answered, gallery
from sensorium.families.climate_text.llm import open_tokenizer
from sensorium.families.climate_text.model import Decoding
from sensorium.families.climate_text.prompts import Texts
from sensorium.families.climate_text.ranking import likeliest
from sensorium.families.climate_text.task import ClimateTextTask, sections
from sensorium.metrics.bootstrap import Difference, difference

NOT_USED = "CLIMATE NOT USED"
_ROWS = {"own": "its own field", "shuffled": "the field of another sample", "absent": "no field"}
_USUAL = "the commonest answer"


@dataclass(frozen=True)
class _Judged:
    """Of the answered entries ``rows``: by control, and ``usual``, the texts, and which facts each has right."""

    rows: list[int]
    texts: Mapping[str, list[str]]
    right: Mapping[str, list[dict[str, bool]]]

    def share(self, whose: str, fact: str | None = None) -> float:
        """Percent of facts that are right; NaN where none is told."""
        found = [ok for one in self.right[whose] for name, ok in one.items() if fact in (None, name)]
        return 100 * float(np.mean(found)) if found else float("nan")

    def by_entry(self, whose: str) -> np.ndarray:
        """Share of each entry's facts that are right, of the entries that tell any."""
        return np.array([np.mean(list(one.values())) for one in self.right[whose] if one])


class ClimateEvaluator:
    """Every entry under every control (``EvalSource``). ``final`` makes answers, tables and maps."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.settings = sections(config)[1].evaluation

    @cached_property
    def _texts(self) -> Texts:
        model, data = sections(self.config)
        return texts_of(open_tokenizer(model), data)

    def collect(self, task: nn.Module, batch: Batch, *, final: bool) -> Mapping[str, Tensor]:
        """``loss`` ``[B]``: sums over the ``tokens`` ``[B]`` of a target; ``answer`` ``[B, M]``, -1 behind its end;
        ``ranked`` ``[B]``: number of the likeliest closed answer, -1 where none is sought."""
        assert isinstance(task, ClimateTextTask)
        said, count = task.model(batch), len(batch["input_ids"])
        tokens = torch.bincount(said.rows, minlength=count)
        found = {"loss": said.per_row(count).float(), "tokens": tokens}
        if final:
            found["answer"] = self._answers(task, batch)
            found["ranked"] = likeliest(task.model, batch)
        return found

    def _answers(self, task: ClimateTextTask, batch: Batch) -> Tensor:
        most = self.settings.max_new_tokens
        answers = torch.full((len(batch["input_ids"]), most), -1, device=batch["input_ids"].device)
        chosen = batch.get("answered", torch.ones(len(answers), dtype=torch.bool, device=answers.device))
        if chosen.any():
            some = {name: tensor[chosen] for name, tensor in batch.items() if tensor.ndim}
            ids = task.model.generate(some, Decoding(self._texts.end, self._texts.pad, most))
            answers[chosen.nonzero()[:, 0][:, None], torch.arange(ids.shape[1], device=ids.device)] = ids
        return answers

    def score(self, collected: Mapping[str, Tensor], source: Source, task: nn.Module, *, final: bool) -> Evaluation:
        if not isinstance(source, EvalSource):
            raise DataError("the training split has no controls to be compared with; evaluate val or test")
        loss_KN, tokens_KN = (collected[name].numpy().reshape(-1, source.rows) for name in ("loss", "tokens"))
        arms = dict(zip(source.controls, zip(loss_KN, tokens_KN, strict=True), strict=True))
        metrics: dict[str, float] = {"loss": float(loss_KN[0].sum() / tokens_KN[0].sum())}
        for control, (loss_N, tokens_N) in arms.items():
            metrics["perplexity" if control == "own" else f"perplexity/{control}"] = scoring.perplexity(
                loss_N, tokens_N
            )
        if not final:
            return Evaluation(metrics)
        judged = self._judge(collected["answer"].numpy(), source)
        metrics |= _fact_metrics(judged)
        compared = _compared(judged, arms, source)
        used = all(one.low > 0 for one in compared.values())
        metrics["climate_used"] = float(used)
        overlaps = {name: scoring.overlap(_references(judged, source), judged.texts[name]) for name in judged.texts}
        if overlaps["own"].rouge_l is not None and overlaps["own"].bleu is not None:
            metrics |= {"rouge_l": overlaps["own"].rouge_l, "bleu": overlaps["own"].bleu}
        tables = [_answers_table(judged, metrics, overlaps, source), _used_table(compared)]
        for found, table in (_by_likelihood(collected["ranked"].numpy(), source), _numbers(judged, source)):
            metrics |= found
            tables += table
        tables += _unseen(judged, source)
        warnings = () if used else (_not_used(compared),)
        shown, pictures = gallery(self._shown(judged, source, task), source)
        details = {"answers": [_detail(judged, source, place) for place in range(len(judged.rows))]}
        return Evaluation(metrics, tuple(tables), shown, warnings, details, pictures)

    # --- answers

    def _judge(self, answer_KNxM: np.ndarray, source: EvalSource) -> _Judged:
        rows = np.flatnonzero(source.answered).tolist()
        texts = {
            control: [self._said(answer_KNxM[number * source.rows + row]) for row in rows]
            for number, control in enumerate(source.controls)
        }
        labels = list(source.part.layout.labels.values())
        entries = [source.part.entries[row] for row in rows]
        texts["usual"] = [_usual_text(entry, source.usual) for entry in entries]
        right = {
            name: [scoring.right_facts(*asked(entry), text, labels) for entry, text in zip(entries, some, strict=True)]
            for name, some in texts.items()
        }
        return _Judged(rows, texts, right)

    def _said(self, ids_M: np.ndarray) -> str:
        return self._texts.said([number for number in ids_M.tolist() if number >= 0])

    def _shown(self, judged: _Judged, source: EvalSource, task: nn.Module) -> list[Answered]:
        """Entries spread evenly over the split, not chosen by success."""
        assert isinstance(task, ClimateTextTask)
        places = np.linspace(0, len(judged.rows) - 1, min(self.settings.maps, len(judged.rows))).round().astype(int)
        found = []
        for place in places.tolist() if self.settings.maps else []:
            right = judged.right["own"][place]
            texts = {_ROWS[name]: judged.texts[name][place] for name in source.controls}
            row, said = judged.rows[place], next(iter(texts.values()))
            seen = self._attention(row, said, source, task) if said else None
            found.append(Answered(row, texts, all(right.values()) if right else None, seen))
        return found

    def _attention(self, row: int, said: str, source: EvalSource, task: ClimateTextTask) -> np.ndarray | None:
        """What the words of an answer with the own field look at, ``[h, w]``."""
        batch = collate([{**source.example(row, 0), "target_ids": self._texts.target(said)}], self._texts.pad)
        device = next(task.parameters()).device
        return looked_at(task.model, {name: tensor.to(device) for name, tensor in batch.items()})


def _usual_text(entry: Entry, usual: Mapping[tuple[str, str], Any]) -> str:
    """The answer of somebody who knows the commonest facts of such questions, and sees nothing."""
    kind, facts = asked(entry)
    told = {fact: usual.get((kind, fact)) for fact in grammar.TOLD.get(kind, ()) if fact in facts}
    return grammar.tell(kind, {**facts, **told}) if told and None not in told.values() else ""


def _references(judged: _Judged, source: EvalSource) -> list[str]:
    return [source.part.entries[row].target for row in judged.rows]


def _told(judged: _Judged) -> list[str]:
    """The facts that are told at all, in a fixed order."""
    there = {fact for one in judged.right["own"] for fact in one}
    return [kind for kind in grammar.TOLD if kind in there]


def _fact_metrics(judged: _Judged) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for fact in (None, *_told(judged)):
        name = "facts" if fact is None else f"facts/{fact}"
        if not _told(judged):
            break
        metrics[name] = judged.share("own", fact)
        metrics[f"chance/{name}"] = judged.share("usual", fact)
        metrics |= {
            f"{control}/{name}": judged.share(control, fact) for control in CONTROLS[1:] if control in judged.right
        }
    return metrics


# --- the field is used, or it is not


def _compared(
    judged: _Judged, arms: Mapping[str, tuple[np.ndarray, np.ndarray]], source: EvalSource
) -> dict[str, Difference]:
    """Gains of the own field over each control: percent of facts, and nats a token."""
    found: dict[str, Difference] = {}
    entries = source.part.entries
    if _told(judged):
        own = judged.by_entry("own")
        blocks = [_block(entries[row], row) for row, one in zip(judged.rows, judged.right["own"], strict=True) if one]
        for name, words in (*_ROWS.items(), ("usual", _USUAL)):
            if name != "own" and name in judged.right:
                found[f"facts, over {words}"] = difference(100 * (own - judged.by_entry(name)), blocks)
    blocks = [_block(entry, row) for row, entry in enumerate(entries)]
    own_N = arms["own"][0] / arms["own"][1]
    for name, (loss_N, tokens_N) in arms.items():
        if name != "own":
            found[f"loss, below {_ROWS[name]}"] = difference(loss_N / tokens_N - own_N, blocks)
    return found


def _block(entry: Entry, row: int) -> str:
    """Entries of one block are no independent witnesses: free text of one time, questions about one field."""
    return entry.climate_file if entry.facts is not None else entry.group or f"row {row}"


def _not_used(compared: Mapping[str, Difference]) -> str:
    failed = [
        f"{what}: {one.mean:.3g} ({one.low:.3g} to {one.high:.3g})" for what, one in compared.items() if one.low <= 0
    ]
    return f"{NOT_USED}: not surely better than its controls in {'; '.join(failed)}"


# --- tables


def _answers_table(
    judged: _Judged, metrics: Mapping[str, float], overlaps: Mapping[str, scoring.Overlap], source: EvalSource
) -> Table:
    facts = _told(judged)
    lines = []
    for name, words in (*_ROWS.items(), ("usual", _USUAL)):
        if name not in judged.texts:
            continue
        perplexity = metrics.get("perplexity" if name == "own" else f"perplexity/{name}")
        shares = [judged.share(name, fact) for fact in (None, *facts)] if facts else []
        lines.append((words, perplexity, *shares, overlaps[name].rouge_l, overlaps[name].bleu, len(judged.rows)))
    columns = ("answered with", "perplexity", *(["facts", *facts] if facts else []), "ROUGE-L", "BLEU", "samples")
    note = (
        "Percent of facts that the generated text tells rightly; what cannot be read is wrong, and a size may be 10 % "
        f"off. Perplexity of the references over the whole split. Words: {overlaps['own'].version}."
    )
    note = " ".join([note, *(f"{one[0].upper()}{one[1:]}." for one in assumed(source.part))])
    return Table("Answers", columns, tuple(lines), note)


def _used_table(compared: Mapping[str, Difference]) -> Table:
    lines = tuple((what, one.mean, one.low, one.high, "yes" if one.low > 0 else "NO") for what, one in compared.items())
    note = (
        "Gain of answers with the own field, percent of facts or nats a token, with its 95 % interval (paired "
        "bootstrap over fields, of free text over blocks of time). The field is used when all of them lie above zero."
    )
    return Table("Is the field used?", ("gain in", "mean", "low", "high", "above zero"), lines, note)


def _by_likelihood(ranked_KN: np.ndarray, source: EvalSource) -> tuple[dict[str, float], list[Table]]:
    """Facts that the model holds for the likeliest of the closed answers; nothing where none was to be ranked."""
    if not source.closed:
        return {}, []
    entries = source.part.entries
    kinds = {row: asked(entries[row])[0] for row in source.closed}
    there = [kind for kind in grammar.TOLD if kind in kinds.values()]
    right: dict[str, dict[int, float]] = {
        control: {
            row: float(list(answers)[ranked_N[row]] == asked(entries[row])[1][kinds[row]])
            for row, answers in source.closed.items()
        }
        for control, ranked_N in zip(source.controls, ranked_KN.reshape(-1, source.rows), strict=True)
    }
    right["chance"] = {row: 1 / len(answers) for row, answers in source.closed.items()}
    metrics, lines = {}, []
    for control, words in (*_ROWS.items(), ("chance", "nothing: one of the answers at random")):
        if control not in right:
            continue
        shares = [
            100 * float(np.mean([value for row, value in right[control].items() if fact in (None, kinds[row])]))
            for fact in (None, *there)
        ]
        prefix = "" if control == "own" else f"{control}/"
        names = [f"{prefix}ranked/facts", *(f"{prefix}ranked/facts/{fact}" for fact in there)]
        metrics |= dict(zip(names, shares, strict=True))
        lines.append((words, *shares, len(source.closed)))
    note = (
        "Which of the closed answers of its question the model holds for the likeliest, percent right. It may know "
        "more than it writes; whether the field is used is judged by what it writes."
    )
    return metrics, [Table("Facts by likelihood", ("ranked with", "facts", *there, "samples"), tuple(lines), note)]


def _numbers(judged: _Judged, source: EvalSource) -> tuple[dict[str, float], list[Table]]:
    """Numbers of the texts beside those of the references; nothing where these hold none."""
    references = _references(judged, source)
    most = scoring.numbers(references, references)[2]
    if not most:
        return {}, []
    metrics, lines = {}, []
    for name, words in (*_ROWS.items(), ("usual", _USUAL)):
        if name not in judged.texts:
            continue
        error, close, count = scoring.numbers(references, judged.texts[name])
        lines.append((words, error if count else None, close if count else None, count, most))
        if name == "own":
            metrics = {"numbers": float(count)} | ({"numbers/error": error, "numbers/close": close} if count else {})
    note = "Mean absolute error, and percent within 10 %, of the texts that hold one number where the reference does."
    columns = ("answered with", "error", "within 10 %", "texts with a number", "references with one")
    return metrics, [Table("Numbers", columns, tuple(lines), note)]


def _unseen(judged: _Judged, source: EvalSource) -> Iterator[Table]:
    """Facts by what of the sample training never had."""
    groups: dict[str, list[dict[str, bool]]] = {}
    for row, right in zip(judged.rows, judged.right["own"], strict=True):
        unseen = (source.part.entries[row].facts or {}).get("unseen")
        if isinstance(unseen, list) and right:
            for name in unseen or ["nothing"]:
                groups.setdefault(str(name), []).append(right)
    if len(groups) > 1:
        lines = tuple(
            (name, 100 * float(np.mean([ok for one in some for ok in one.values()])), len(some))
            for name, some in sorted(groups.items())
        )
        yield Table("Facts by what training never had", ("never had", "facts", "samples"), lines)


def _detail(judged: _Judged, source: EvalSource, place: int) -> dict[str, Any]:
    entry = source.part.entries[judged.rows[place]]
    return {
        "sample": judged.rows[place],
        "file": entry.climate_file,
        "text": entry.text,
        "target": entry.target,
        **{name: some[place] for name, some in judged.texts.items()},
        "right": judged.right["own"][place],
    }
