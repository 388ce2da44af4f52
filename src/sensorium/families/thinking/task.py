"""The one module of a `thinking` run: model, losses, and the read-outs that retrieval uses.

Legend: B rows of the batch, n modalities in it, D width. To train with another loss, subclass ``ThinkingTask`` and
override ``compute_loss``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.data.items import MODALITIES, Modality
from sensorium.engine.contract import Batch, Output
from sensorium.engine.seeds import derive
from sensorium.errors import ConfigError, DataError
from sensorium.families.thinking import losses
from sensorium.families.thinking.config import ModelConfig
from sensorium.families.thinking.model import EncoderFacts, Pass, build_model, centred
from sensorium.parts.chunks import Rows, in_chunks, take
from sensorium.parts.contrastive import Queue, Side, Temperature, align, gather_rows, rank, world_size

Vectors = dict[Modality, Tensor]
Read = dict[str, Tensor]
Features = Mapping[Modality, Any]
PARTIAL = "partial"


class ThinkingTask(nn.Module):
    """``task(batch) -> Output``; ``embed``, ``embed_joint`` and ``match_score`` are what search and evaluation call.

    ``widths``: facts of the encoder of each modality in the run. ``chunks``: parts in which the rows of a training
    step are read, to save memory; the loss is that of all rows all the same. Raises ConfigError for fewer than two
    modalities.
    """

    def __init__(
        self, config: ModelConfig, widths: Mapping[Modality, EncoderFacts], seed: int, chunks: int = 1
    ) -> None:
        super().__init__()
        self.config, self.seed, self.chunks = config, seed, chunks
        self.facts = {m: widths[m] for m in MODALITIES if m in widths}
        if len(self.facts) < 2:
            found = ", ".join(self.facts) or "none"
            raise ConfigError(f"thinking aligns at least two of {', '.join(MODALITIES)}; the data have: {found}")
        self.model = build_model(config, self.facts)
        start = (10.0, -10.0) if config.loss == "sigmoid" else (1 / 0.07, None)
        pairs = combinations(self.facts, 2)
        self.temperatures = nn.ModuleDict({f"{a}-{b}": Temperature(*start) for a, b in pairs})
        self.reconstruct = None
        if config.weights.recon:
            pooled_widths = {m: fact.pooled_width for m, fact in self.facts.items()}
            self.reconstruct = losses.Reconstruct(config.embedding_width, pooled_widths)
        self.match = losses.Match(config.embedding_width) if config.weights.match else None
        self.queue = Queue(list(self.facts), config.embedding_width, config.queue) if config.queue else None

    def forward(self, batch: Batch) -> Output:
        """Loss of a batch. Raises DataError for rows that hold nothing and for features of another width."""
        logs = self.compute_loss(batch)
        loss = logs.pop("loss")
        return Output(loss, {name: value.detach() for name, value in logs.items()}, float(len(batch["has"])))

    def compute_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name: ``"loss"`` is trained on, the others are logged."""
        has = self._present(batch)
        present = torch.stack(list(has.values()), dim=1)
        steps = self._steps(batch)
        first = rank() * len(present) if self.training else 0  # turns are taken over the joint batch
        left_out = losses.leave_one_out(present, self._draw(batch, "left out", 6) + first)
        read, features = self._read_alone(batch, has, left_out, steps)
        z = {m: read[m] for m in has}
        logs = self._align(z, has, batch["group"])
        loss = self.config.weights.align * logs["align"]
        if self.reconstruct is not None and len(has) > 1:
            logs["recon"] = self._reconstruction(self.reconstruct, batch, read, present, left_out)
            loss = loss + self.config.weights.recon * logs["recon"]
        if self.match is not None and len(has) > 1:
            pairs = losses.draw_pairs(z, present, left_out, batch["group"], sample=self.training)
            joint = self._read_pairs(batch, features, pairs.read, steps)
            logs["match"] = losses.matching(self.match(joint), pairs.used) * self._share(pairs.used)
            loss = loss + self.config.weights.match * logs["match"]
        return {"loss": loss, **logs, "think_steps": torch.tensor(float(steps))}

    def _read_alone(self, batch: Batch, has: Vectors, left_out: Tensor, steps: int) -> tuple[Read, Features | None]:
        """Unit read-outs ``[B, D]`` of each modality by itself, and, where reconstruction needs it, of each row without
        the modality that it leaves out (``PARTIAL``); and the features, if all rows were read at once."""
        names: list[str] = list(has)
        if self.reconstruct is not None and len(has) > 2:
            names.append(PARTIAL)

        def read(rows: Rows | None) -> tuple[Read, Features]:
            part, seen, left = batch, has, left_out
            if rows is not None:
                part, seen, left = take(batch, rows), take(has, rows), left_out[rows]
            passes = [Pass({m: mask}) for m, mask in seen.items()]  # no pass is given another modality's tokens
            if PARTIAL in names:
                passes.append(Pass({m: mask & (left != i) for i, (m, mask) in enumerate(seen.items())}))
            features = self.model.features(part, list(seen), steps)
            found = self.model.read(features, passes, steps)
            return dict(zip(names, (losses.unit(e) for e in found), strict=True)), features

        if not self._chunked:
            return read(None)
        return in_chunks(lambda rows: read(rows)[0], _numbers(batch), self.chunks), None

    def _read_pairs(self, batch: Batch, features: Features | None, pairs: Pass, steps: int) -> Tensor:
        """Unit read-outs of both modalities of each pair: ``[2B, D]``, true pairs first."""
        if features is not None:
            [joint] = self.model.read(features, [pairs], steps)
            return losses.unit(joint)
        assert pairs.rows is not None
        sources, size = pairs.rows, len(batch["has"])

        def read(rows: Rows) -> Read:
            both = torch.cat([rows, size + rows])  # of each true pair also the false one
            part = {
                name: tensor[sources[modality][both]]
                for modality in sources
                for name, tensor in batch.items()
                if name.startswith(f"{modality}_")
            }
            features = self.model.features(part, list(sources), steps)
            [joint] = self.model.read(features, [Pass({m: keep[both] for m, keep in pairs.keep.items()})], steps)
            true, false = losses.unit(joint).chunk(2)
            return {"true": true, "false": false}

        found = in_chunks(read, _numbers(batch), self.chunks)
        return torch.cat([found["true"], found["false"]])

    @property
    def _chunked(self) -> bool:
        return self.training and self.chunks > 1

    def _reconstruction(
        self, heads: losses.Reconstruct, batch: Batch, read: Read, present: Tensor, left_out: Tensor
    ) -> Tensor:
        """Loss of predicting the modality that each row left out; of two, each is left out by the other's pass."""
        names = [name for name in read if name != PARTIAL]
        if PARTIAL in read:
            used = left_out[:, None] == torch.arange(len(names), device=left_out.device)
            sources = dict.fromkeys(names, read[PARTIAL])
        else:
            used = present.all(dim=1, keepdim=True).expand_as(present)
            sources = dict(zip(names, reversed([read[name] for name in names]), strict=True))
        targets = {m: centred(batch[f"{m}_pooled"], self.model.means[m]) for m in names}
        return losses.reconstruction(heads, sources, targets, used) * self._share(used)

    def _share(self, used: Tensor) -> Tensor | float:
        """Makes the mean over processes of local means that over all rows, as in ``align``; 1 outside of training."""
        if not self.training or world_size() == 1:
            return 1.0
        mine = used.sum().float()
        return mine * world_size() / gather_rows(mine[None]).sum().clamp_min(1)

    def embed(self, batch: Batch, think_steps: int | None = None) -> Vectors:
        """Unimodal read-outs ``[B, D]`` by modality: unit length, float32; zeros where a row lacks the modality.

        ``think_steps``: K for this call (default: the configured one). Modalities that the batch lacks are left out.
        """
        has, steps = self._present(batch), self._steps(batch, think_steps)
        features = self.model.features(batch, list(has), steps)
        read = self.model.read(features, [Pass({m: mask}) for m, mask in has.items()], steps)
        units = zip(has.items(), read, strict=True)
        return {m: losses.unit(e).masked_fill(~mask[:, None], 0.0) for (m, mask), e in units}

    def embed_joint(
        self, batch: Batch, subset: Sequence[Modality] | None = None, think_steps: int | None = None
    ) -> Tensor:
        """Read-outs ``[B, D]`` of what each row holds of ``subset`` (default: all of it): unit length, float32.

        Raises DataError for a row that holds none of it.
        """
        has, steps = self._present(batch, subset), self._steps(batch, think_steps)
        features = self.model.features(batch, list(has), steps)
        [read] = self.model.read(features, [Pass(has)], steps)
        return losses.unit(read)

    def match_score(
        self, batch: Batch, subset: Sequence[Modality] | None = None, think_steps: int | None = None
    ) -> Tensor:
        """Logit ``[B]`` that what each row holds of ``subset`` belongs together, to re-rank what search has found.

        Trained on pairs of modalities. Raises ConfigError in a run without match head (``model.weights.match`` 0).
        """
        if self.match is None:
            raise ConfigError("this run has no match head to re-rank with; train with model.weights.match above 0")
        result: Tensor = self.match(self.embed_joint(batch, subset, think_steps))
        return result

    def _align(self, z: Vectors, has: Vectors, group: Tensor) -> dict[str, Tensor]:
        """Contrastive loss of every pair of modalities, and their mean over the pairs that occur.

        In training the negatives of all processes are used; evaluation keeps to its own batch, as processes may then
        hold different numbers of batches.
        """
        modalities = list(z)
        mine = _sides(z, has, group)
        everyone = mine
        if self.training:
            facts = gather_rows(torch.stack([group, *(has[m].long() for m in modalities)], dim=1))
            vectors = gather_rows(torch.cat([z[m] for m in modalities], dim=1)).chunk(len(modalities), dim=1)
            known = {m: facts[:, 1 + i].bool() for i, m in enumerate(modalities)}
            everyone = _sides(dict(zip(modalities, vectors, strict=True)), known, facts[:, 0])
        if self.training and self.queue is not None:
            self.queue.offer(everyone)
        values, counts, sizes = [], [], []
        logs: dict[str, Tensor] = {}
        for a, b in combinations(modalities, 2):
            pair = f"{a}-{b}"
            temperature = self.temperatures[pair]
            here, there = (_both(sides[a], sides[b]) for sides in (mine, everyone))
            kept = None
            if self.training and self.queue is not None:
                kept = _both(self.queue.side(a), self.queue.side(b))
            values.append(align(here, there, temperature, kept))
            counts.append(there[0].present.sum())
            sizes.append(counts[-1] + (0 if kept is None else kept[0].present.sum()))
            logs |= {f"align/{pair}": values[-1], f"temperature/{pair}": 1 / temperature.scale()}
        if not values:
            raise DataError("a batch of a single modality has nothing to align; give at least two")
        chance = [size.clamp_min(1).float().log() for size in sizes]
        if self.config.loss == "sigmoid":  # all pairs equally likely: the entropy of 1/n, n times
            chance = [c + (c.exp() - 1) * (c - (c.exp() - 1).clamp_min(1e-9).log()) for c in chance]
        return {
            "align": losses.mean_of(values, counts),
            "align_chance": losses.mean_of(chance, counts),
            **logs,
        }

    def _present(self, batch: Batch, subset: Sequence[Modality] | None = None) -> Vectors:
        """Which rows hold each modality of the batch, ``[B]`` bool. Raises DataError for what cannot be encoded."""
        wanted = self.facts if subset is None else subset
        has: Vectors = {}
        broken = torch.zeros(len(batch["has"]), dtype=torch.bool, device=batch["has"].device)
        for modality in (m for m in self.facts if m in wanted and f"{m}_pooled" in batch):
            has[modality] = batch["has"][:, MODALITIES.index(modality)]
            self._check_width(modality, "pooled", batch, self.facts[modality].pooled_width)
            if self.config.kind == "slots":
                self._check_width(modality, "tokens", batch, self.facts[modality].width)
                broken |= has[modality] & ~batch[f"{modality}_mask"].any(dim=1)
        if not has:
            raise DataError(f"the batch holds none of: {', '.join(wanted)}")
        broken |= ~torch.stack(list(has.values())).any(dim=0)
        if bool(broken.any()):
            numbers = batch.get("index", torch.arange(len(broken), device=broken.device))[broken].tolist()
            raise DataError(f"sample {numbers[0]} ({len(numbers)} in this batch) holds none of: {', '.join(has)}")
        return has

    def _check_width(self, modality: Modality, kind: str, batch: Batch, width: int) -> None:
        found = batch[f"{modality}_{kind}"].shape[-1]
        if found != width:
            raise DataError(f"{modality} {kind} have width {found}; this model was built for {width}")

    def _steps(self, batch: Batch, wanted: int | None = None) -> int:
        """K of this batch: as asked for, or drawn (in training, the same on all processes), or as configured."""
        steps = self.config.think_steps
        if wanted is not None:
            steps = wanted
        elif self.training and self.config.think_steps_max is not None and "step" in batch:
            steps = 1 + self._draw(batch, "think steps", self.config.think_steps_max)
        if wanted and not self.model.can_think:
            raise ConfigError(f"this run has no walker, so think_steps must be 0 (found {wanted})")
        return steps

    def _draw(self, batch: Batch, purpose: str, limit: int) -> int:
        """A number below ``limit`` from seed and step, the same on all processes; 0 outside of training."""
        if "step" not in batch:
            return 0
        return derive(self.seed, purpose, int(batch["step"])) % limit


def _numbers(batch: Batch) -> Rows:
    return torch.arange(len(batch["has"]), device=batch["has"].device)


def _sides(z: Vectors, has: Vectors, group: Tensor) -> dict[Modality, Side]:
    return {m: Side(vectors, group, has[m]) for m, vectors in z.items()}


def _both(a: Side, b: Side) -> tuple[Side, Side]:
    """Rows that lack one of the two take no part in the pair's loss."""
    present = a.present & b.present
    return Side(a.vectors, a.groups, present, a.queued), Side(b.vectors, b.groups, present, b.queued)


def after_step(task: nn.Module, step: int) -> None:
    """The family's hook after each optimizer step: every temperature stays at or above 0.01, the queue moves on."""
    del step
    for part in task.modules():
        if isinstance(part, Temperature):
            part.clamp_()
        elif isinstance(part, Queue):
            part.commit()


def at_chance(values: Mapping[str, float]) -> bool:
    """Whether the contrastive loss is within 1 % of that of a model that tells nothing from nothing."""
    return abs(values["align"] - values["align_chance"]) < 0.01 * values["align_chance"]
