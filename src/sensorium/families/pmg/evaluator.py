"""Validation with fixed noise, beside its two controls: the caption alone, and another user's soft tokens.

Personalisation exists only where the error with a user's own soft tokens is below both.
Legend: B rows of a batch, N samples of the split, S draws of noise a sample.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sensorium.engine.contract import Batch, Evaluation, Source, Table
from sensorium.engine.settings import RunConfig
from sensorium.errors import DataError
from sensorium.families.pmg.conditioning import Told
from sensorium.families.pmg.data import EvalSource
from sensorium.families.pmg.gallery import grid_gallery
from sensorium.families.pmg.task import PMGTask
from sensorium.metrics.bootstrap import difference

OWN, CAPTION, OTHER = "own", "caption-only", "other-user"
NAMES = {OWN: "the user's soft tokens", CAPTION: "the caption alone", OTHER: "another user's soft tokens"}
NOT_PERSONAL = "NOT PERSONAL"


class PMGEvaluator:
    """Unweighted error of each control; ``final`` draws pictures."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def collect(self, task: nn.Module, batch: Batch, *, final: bool) -> Mapping[str, Tensor]:
        """``[B]`` each: ``own``, with ``soft_norm_ratio``; of a held-out split the controls besides."""
        del final
        assert isinstance(task, PMGTask)
        soft = task.soft(batch["input_ids"], batch["text_mask"])
        found = {OWN: task.errors(batch, task.told(batch, soft)).mean(1), "soft_norm_ratio": _ratio(batch, soft)}
        if "plain_states" in batch:
            found[CAPTION] = _plain(task, batch)
        if "wrong_ids" in batch and "split" in batch:
            other = task.soft(batch["wrong_ids"], batch["wrong_mask"])
            found[OTHER] = task.errors(batch, task.told(batch, other)).mean(1)
        return found

    def score(self, collected: Mapping[str, Tensor], source: Source, task: nn.Module, *, final: bool) -> Evaluation:
        """``loss``, and ``error`` of each control in one chart; ``personal``: 1 if the own lies surely below both."""
        metrics = {"loss": float(collected[OWN].double().mean())}
        metrics |= {f"{name}/error": float(collected[name].double().mean()) for name in NAMES if name in collected}
        metrics["soft_norm_ratio"] = float(collected["soft_norm_ratio"].double().mean())
        if not final:
            return Evaluation(metrics)
        if not isinstance(source, EvalSource):
            raise DataError("the training split has no controls to be compared with; evaluate val or test")
        assert isinstance(task, PMGTask)
        gains = compared(collected, [taste.user for taste in source.split.tastes])
        failed = [NAMES[name] for name, (_, low, _) in gains.items() if low <= 0]
        warnings = [f"{NOT_PERSONAL}: not surely better than {' and '.join(failed)}"] if failed else []
        if OTHER not in collected:
            warnings.append("all samples are of one user: nobody else's soft tokens could be tried")
        metrics["personal"] = float(not warnings)
        galleries, pictures = grid_gallery(task, source, self.config)
        details = {"samples": _details(collected, source)}
        return Evaluation(metrics, (_table(metrics, gains),), galleries, tuple(warnings), details, pictures)


def _ratio(batch: Mapping[str, Tensor], soft_BNd: Tensor) -> Tensor:
    """Length of soft vectors against that of the caption's, ``[B]``; without a caption of 1."""
    length = soft_BNd.norm(dim=2).mean(1)
    states = batch.get("caption_states")
    return length if states is None else length / states.norm(dim=2).mean(1)


def _plain(task: PMGTask, batch: Batch) -> Tensor:
    """Error of Stable Diffusion alone, ``[B]``: constant, so computed once for a sample."""
    keys = list(zip(batch["split"].tolist(), batch["index"].tolist(), strict=True)) if "index" in batch else []
    if not keys or any(key not in task.plain_losses for key in keys):
        found = task.errors(batch, Told(batch["plain_states"])).mean(1)
        task.plain_losses.update(zip(keys, found.tolist(), strict=False))
        return found
    known = [task.plain_losses[key] for key in keys]
    return torch.tensor(known, dtype=torch.float32, device=batch["plain_states"].device)


def compared(collected: Mapping[str, Tensor], users: list[str]) -> dict[str, tuple[float, float, float]]:
    """How far the own error lies below each control, mean and 95 % interval by a bootstrap over users, percent."""
    found = {}
    for control in (CAPTION, OTHER):
        if control not in collected:
            continue
        gain_N = (collected[control] - collected[OWN]).double().numpy()
        gain = difference(100 / float(collected[control].double().mean()) * gain_N, users)
        found[control] = (gain.mean, gain.low, gain.high)
    return found


def _table(metrics: Mapping[str, float], gains: Mapping[str, tuple[float, float, float]]) -> Table:
    nothing = (None, None, None)
    rows = tuple(
        (words, metrics[f"{name}/error"], *gains.get(name, nothing))
        for name, words in NAMES.items()
        if f"{name}/error" in metrics
    )
    note = (
        "Mean squared error of the noise, the same noise and timesteps in all rows. Gain: percent by which the user's "
        "own soft tokens lie below, with the 95 % interval of a bootstrap over users."
    )
    return Table("Is it this user's taste?", ("told", "error", "gain", "low", "high"), rows, note)


def _details(collected: Mapping[str, Tensor], source: EvalSource) -> list[dict[str, object]]:
    return [
        {
            "sample": number,
            "user": taste.user,
            "target": taste.target.id,
            **{name: float(collected[name][number]) for name in NAMES if name in collected},
        }
        for number, taste in enumerate(source.split.tastes)
    ]
