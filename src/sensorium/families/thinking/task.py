"""The one module of a `thinking` run: model, losses, and the read-outs that retrieval uses.

Legend: B rows of the batch, D width. To train with another loss, subclass ``ThinkingTask`` and override
``compute_loss``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium.data.items import MODALITIES, Modality
from sensorium.engine.contract import Batch, Output
from sensorium.engine.seeds import derive
from sensorium.errors import ConfigError, DataError
from sensorium.families.thinking.config import ModelConfig
from sensorium.families.thinking.losses import Match, Reconstruct, leave_one_out, reconstruction, swap
from sensorium.families.thinking.model import EncoderFacts, Pass, build_model
from sensorium.parts.contrastive import Side, Temperature, align, gather_rows, world_size

Vectors = dict[Modality, Tensor]


class ThinkingTask(nn.Module):
    """``task(batch) -> Output``; ``embed``, ``embed_joint`` and ``match_score`` are what search and evaluation call.

    ``widths``: facts of the encoder of each modality in the run. Raises ConfigError where they cannot be trained on.
    """

    def __init__(self, config: ModelConfig, widths: Mapping[Modality, EncoderFacts], seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.modalities: tuple[Modality, ...] = tuple(m for m in MODALITIES if m in widths)
        if len(self.modalities) < 2:
            found = ", ".join(self.modalities) or "none"
            raise ConfigError(f"thinking aligns at least two of {', '.join(MODALITIES)}; the data have: {found}")
        self.facts = {m: widths[m] for m in self.modalities}
        self.model = build_model(config, self.facts)
        start = (10.0, -10.0) if config.loss == "sigmoid" else (1 / 0.07, None)
        self.temperatures = nn.ModuleDict(
            {f"{a}-{b}": Temperature(*start) for a, b in combinations(self.modalities, 2)}
        )
        self.reconstruct = None
        if config.weights.recon:
            self.reconstruct = Reconstruct(config.width, {m: fact.pooled_width for m, fact in self.facts.items()})
        self.match = Match(config.width) if config.weights.match else None

    def forward(self, batch: Batch) -> Output:
        """Loss of a batch. Raises DataError for rows that hold nothing and features of another width."""
        logs = self.compute_loss(batch)
        loss = logs.pop("loss")
        return Output(loss, {name: value.detach() for name, value in logs.items()}, float(len(batch["has"])))

    def compute_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; ``"loss"`` is the one to be trained on, the others are logged."""
        has = self._present(batch)
        steps = self._steps_of(batch)
        features = self.model.features(batch, list(has), steps)
        passes = [Pass({m: has[m]}) for m in has]  # unimodal: no pass is given another modality's tokens
        present = torch.stack(list(has.values()), dim=1)
        left_out = leave_one_out(present, self._draw(batch, "left out", 6))
        joint_recon = self.reconstruct is not None and len(has) > 2
        if joint_recon:
            passes.append(Pass({m: has[m] & (left_out != i) for i, m in enumerate(has)}))
        read = self.model.read(features, passes, steps)
        z = {m: _unit(e) for m, e in zip(has, read, strict=False)}
        weights = self.config.weights
        logs = self._align(z, has, batch["group"])
        total = weights.align * logs["align"]
        if self.reconstruct is not None and len(has) > 1:
            sources = [_unit(read[-1])] * len(has) if joint_recon else list(z.values())[::-1]
            targets = {m: (batch[f"{m}_pooled"], self.model.means[m]) for m in has}
            logs["recon"] = reconstruction(self.reconstruct, sources, targets, left_out, both=not joint_recon)
            total = total + weights.recon * logs["recon"]
        if self.match is not None and len(has) > 1:
            logs["match"] = self._match(features, z, has, batch, steps)
            total = total + weights.match * logs["match"]
        return {"loss": total, **logs, "think_steps": torch.tensor(float(steps))}

