"""The module of an `interaction` run: the model, the objective of each stage, and heads that only training needs.

Legend: B rows, C rows of a chunk, D width of an embedding, E width of the fused features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.data.items import MODALITIES, Modality
from sensorium.engine.contract import Batch, Output
from sensorium.engine.settings import RunConfig
from sensorium.errors import DataError
from sensorium.families.interaction import losses, words
from sensorium.families.interaction.config import ModelConfig
from sensorium.families.interaction.losses import PerRow, Projected
from sensorium.families.interaction.model import InteractionModel
from sensorium.families.interaction.pretrain import Pretraining
from sensorium.families.interaction.sources import ALIGN, FULL, UNIMODAL
from sensorium.families.interaction.towers import Encoding
from sensorium.parts.attention import init_weights
from sensorium.parts.chunks import Rows, in_chunks, take
from sensorium.parts.contrastive import Temperature

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Encodings = Mapping[Modality, Encoding]


def normalised(model: InteractionModel, pixels: Tensor) -> Tensor:
    """``[B, 3, S, S]`` uint8 to what the image tower reads."""
    x = pixels.to(model.vision.positions.dtype) / 255
    mean, std = (x.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (x - mean) / std


def encode(model: InteractionModel, batch: Mapping[str, Tensor]) -> dict[Modality, Encoding]:
    """What each tower says of the modality that it reads, of those that the batch holds."""
    has = dict(zip(MODALITIES, batch["has"].unbind(1), strict=True))
    found: dict[Modality, Encoding] = {}
    if "ids" in batch:
        found["text"] = model.encode_text(batch["ids"], batch["ids_mask"], has["text"])
    if "pixels" in batch:
        found["image"] = model.encode_image(normalised(model, batch["pixels"]), has["image"])
    if "mel" in batch:
        found["audio"] = model.encode_audio(batch["mel"], batch["mel_mask"], has["audio"])
    return found


def embed(model: InteractionModel, batch: Mapping[str, Tensor]) -> dict[Modality, Tensor]:
    """Unit vectors ``[B, D]`` by modality, of those that the batch holds; zeros where a row lacks it."""
    return {m: model.embed(m, encoding.pooled) for m, encoding in encode(model, batch).items()}


class InteractionTask(nn.Module):
    """``stage``: whose objective ``forward`` has; None, before a stage has begun: all of them, with the present
    embeddings for targets. ``target_means``: of the last stage's targets, by modality."""

    def __init__(self, config: ModelConfig, facts: Mapping[str, Any], chunks: int) -> None:
        super().__init__()
        self.config, self.chunks = config, chunks
        self.stage: str | None = None
        self.labels: tuple[str, ...] = tuple(facts["labels"])
        self.target_means: dict[Modality, Tensor] = {}
        self.model = InteractionModel(config)
        self.pretrain = Pretraining(config, len(self.labels) if facts["by_labels"] else 0)
        self.recon = nn.ModuleDict({m: nn.Linear(config.fused_width, config.embedding) for m in MODALITIES})
        teachers = {m: torch.tensor(facts["teachers"][m]) for m in MODALITIES if m in facts["teachers"]}
        self.teacher_means: Mapping[str, Tensor] = teachers
        self.distil = nn.ModuleDict({m: nn.Linear(config.dims.width, len(mean)) for m, mean in teachers.items()})
        init_weights(self.recon)
        init_weights(self.distil)

    def train(self, mode: bool = True) -> InteractionTask:
        """What a stage does not train is frozen altogether: no dropout there either."""
        super().train(mode)
        if mode:
            for part in self.modules():
                parameters = list(part.parameters())
                if parameters and not any(p.requires_grad for p in parameters):
                    part.eval()
        return self

    def forward(self, batch: Batch) -> Output:
        """The stage's loss. Raises DataError for a batch that has nothing to learn from."""
        logs: dict[str, Tensor] = {}
        loss = torch.zeros((), device=batch["has"].device)
        if self.stage in (UNIMODAL, None):
            logs |= self._unimodal(batch)
            loss = loss + logs.pop("loss")
        if self.stage != UNIMODAL:
            logs |= self._aligned(batch)
            loss = loss + logs.pop("loss")
        return Output(loss, {name: value.detach() for name, value in logs.items()}, float(len(batch["has"])))

    def _unimodal(self, batch: Batch) -> dict[str, Tensor]:
        """Mean of the towers' own losses over the rows."""
        found = self._in_chunks(self.unimodal_losses, batch)
        logs = {f"unimodal/{name}": self._mean(found, name) for name in ("image", "audio") if name in found}
        if not logs:
            raise DataError("the batch holds neither pictures nor sound; the first stage learns from nothing else")
        return {"loss": torch.stack(list(logs.values())).sum(), **logs}

    def _mean(self, found: Mapping[str, Tensor], name: str) -> Tensor:
        """Of a loss a row, over the rows that have it."""
        return losses.mean_of_used(PerRow(found[name], found[f"{name}/used"]), everywhere=self.training)

    def unimodal_losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each tower's own loss ``[B]``, and under ``.../used`` the rows that have it. A tower that has a teacher
        learns from that one alone."""
        has: Mapping[Modality, Tensor] = dict(zip(MODALITIES, batch["has"].unbind(1), strict=True))
        taught: tuple[Modality, ...] = tuple(m for m in ("image", "audio") if m in self.distil)
        shown = [m for m in taught if f"teacher_{m}" in batch]
        encodings = encode(self.model, batch) if shown else {}
        told = self._distilled({m: encodings[m] for m in shown}, batch, has)
        found = {name.removeprefix("distil/"): value for name, value in told.items()}
        if "pixels" in batch and "image" not in taught:
            images = normalised(self.model, batch["pixels"])
            pictures = self.pretrain.picture_losses(self.model, images, batch.get("labels"))
            used = has["image"] if self.pretrain.labels is None else has["image"] & batch["labels"].any(dim=1)
            found |= {"image": pictures.masked_fill(~used, 0.0), "image/used": used}
        if "mel" in batch and "audio" not in taught:
            used = has["audio"]
            mask = batch["mel_mask"] & used[:, None]
            found |= {"audio": self.pretrain.sound_losses(self.model, batch["mel"], mask), "audio/used": used}
        return found

    def _aligned(self, batch: Batch) -> dict[str, Tensor]:
        """Contrastive losses over all rows, and in the last stage the three others."""
        found = self._in_chunks(self._represent, batch)
        z = {m: found[m] for m in MODALITIES if m in found}
        has = {m: batch["has"][:, i] for i, m in enumerate(MODALITIES) if m in z}
        parts = losses.contrast(z, has, batch["group"], self.model.temperatures, everywhere=self.training)
        pairs = [name for name in parts if not name.startswith("chance/")]
        if not pairs:
            raise DataError("no row of the batch has two modalities, so nothing can be aligned")
        logs = {f"align/{name}": parts[name] for name in pairs}
        logs["align"] = torch.stack([parts[name] for name in pairs]).mean()
        logs["align_chance"] = torch.stack([parts[f"chance/{name}"] for name in pairs]).mean()
        logs |= {f"temperature/{name}": 1 / self._temperature(name).scale() for name in pairs}
        loss = len(pairs) * logs["align"]
        for name in ("match", "recon", "classify", *(f"distil/{m}" for m in MODALITIES)):
            if name in found:
                logs[name] = self._mean(found, name)
                loss = loss + getattr(self.config.weights, name.partition("/")[0]) * logs[name]
        return {"loss": loss, **logs}

    def _temperature(self, pair: str) -> Temperature:
        temperature = self.model.temperatures[pair]
        assert isinstance(temperature, Temperature)
        return temperature

    def _in_chunks(self, represent: Any, batch: Batch) -> dict[str, Tensor]:
        """All rows at once, or, to save memory, part by part (GradCache: parts/chunks.py)."""
        if not (self.training and self.chunks > 1):
            found: dict[str, Tensor] = represent(batch)
            return found
        rows: Rows = torch.arange(len(batch["has"]), device=batch["has"].device)
        return in_chunks(lambda part: represent(take(batch, part)), rows, self.chunks)

    def _represent(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings ``[C, D]`` by modality; in the last stage also each row's other losses ``[C]``."""
        encodings = encode(self.model, batch)
        z = {m: self.model.embed(m, encoding.pooled) for m, encoding in encodings.items()}
        found: dict[str, Tensor] = {**z}
        has = {m: batch["has"][:, i] for i, m in enumerate(MODALITIES) if m in z}
        if self.stage != FULL:
            found |= self._distilled(encodings, batch, has)
        if self.stage == ALIGN:
            return found
        keys = self.model.fusion.keys(encodings)
        weights = self.config.weights
        more: dict[str, PerRow] = {}
        if weights.match and len(z) > 1:

            def judge(rows: Mapping[Modality, Tensor | None]) -> Tensor:
                return self.model.match(self._read(keys, has, rows)).squeeze(1)

            more["match"] = losses.matching(z, has, batch["group"], judge, sample=self.training)
        if weights.recon and len(z) > 1:
            told = {m: z[m] if self.stage is None else batch[f"target_{m}"] for m in z}
            guesses = {m: self.recon[m](self._read(keys, has, dict.fromkeys(set(z) - {m}))) for m in told}
            more["recon"] = losses.reconstruction(guesses, told, self.target_means, has)
        if weights.classify and self.labels and "labels" in batch:
            more["classify"] = losses.classification(
                self.model.classifier(self._read(keys, has, dict.fromkeys(z))), batch["labels"]
            )
        for name, part in more.items():
            found |= {name: part.values, f"{name}/used": part.used}
        return found

    def _distilled(
        self, encodings: Encodings, batch: Mapping[str, Tensor], has: Mapping[Modality, Tensor]
    ) -> dict[str, Tensor]:
        """1 - cosine between what a head makes of a tower's vector and the teacher's, centred: a value a row."""
        found = {}
        for modality, encoding in encodings.items():
            if f"teacher_{modality}" in batch:
                guess = {modality: self.distil[modality](encoding.pooled)}
                told = {modality: batch[f"teacher_{modality}"]}
                values = losses.distances(guess, told, self.teacher_means)[modality]
                used = has[modality]
                found |= {f"distil/{modality}": values.masked_fill(~used, 0.0), f"distil/{modality}/used": used}
        return found

    def _read(self, keys: Projected, has: Mapping[Modality, Tensor], rows: Mapping[Modality, Tensor | None]) -> Tensor:
        """Fused features ``[C, E]`` of these modalities, each taken from its own row or from the one named."""
        chosen = {
            m: tuple(layer.take(rows[m], has[m] if rows[m] is None else has[m][rows[m]]) for layer in keys[m])
            for m in MODALITIES
            if m in rows
        }
        return self.model.read(self.model.fusion(chosen))


def initial(task: nn.Module, config: RunConfig) -> None:
    """Begin the word table with pretrained word vectors. Raises ConfigError."""
    assert isinstance(task, InteractionTask)
    places = words.find(task.config.text)
    if places.vectors is not None:
        words.start_table(task.model.text.words, places.vectors, config.seed)


def after_step(task: nn.Module, step: int) -> None:
    """No temperature goes below 0.01."""
    del step
    for part in task.modules():
        if isinstance(part, Temperature):
            part.clamp_()


def at_chance(values: Mapping[str, float]) -> bool:
    """Whether the contrastive loss is within 1 % of that of a model that tells nothing from nothing; also where a step
    has one row, and there is nothing to tell apart."""
    return "align" in values and abs(values["align"] - values["align_chance"]) <= 0.01 * values["align_chance"]
