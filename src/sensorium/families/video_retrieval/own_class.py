"""Training a model of somebody's own class, built upon ``UnifiedTempMeSTOPModel``, with the usual engine."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sensorium.engine.contract import Family, Sources, Stage
from sensorium.engine.settings import RunConfig
from sensorium.errors import CheckpointError, ConfigError
from sensorium.families.video_retrieval import FAMILY, OWN_CLASS
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel
from sensorium.families.video_retrieval.task import VideoRetrievalTask, sections, stages

_OURS = ("clip", "tempme", "stop")


@dataclass
class OwnClass:
    """``model_class`` in place of ours. What it adds trains in every stage, as the parameter group ``own``."""

    model_class: type[UnifiedTempMeSTOPModel]
    added: tuple[str, ...] = ()  # names of its own parameters, known when the first model was built

    @property
    def name(self) -> str:
        return self.model_class.__name__

    @property
    def grouped(self) -> bool:
        """Whether its loss knows ``groups``."""
        return "groups" in inspect.signature(self.model_class.compute_training_loss).parameters

    def family(self) -> Family:
        """The family with that class. A run says so, and is opened with it alone."""
        ways = {"facts": self._facts, "task": self._task, "stages": self._stages}
        return replace(FAMILY, **ways, whole_gradient=False)  # what it adds need not take part in each step

    def require(self, config: RunConfig) -> None:
        """Raise ConfigError where its loss would not see all rows that shall meet in it."""
        model, _ = sections(config)
        overridden = self.model_class.compute_training_loss is not UnifiedTempMeSTOPModel.compute_training_loss
        if overridden and config.train.micro_batches > 1 and model.loss.negatives == "effective":
            raise ConfigError(
                f"{self.name}.compute_training_loss sees the rows of one part, but those of "
                f"{config.train.micro_batches} parts meet in one loss (training.gradient_accumulation_steps): override "
                "loss_from_features(video, text, groups) instead, or set contrastive.negatives=micro"
            )

    def _facts(self, config: RunConfig, found: Sources) -> dict[str, Any]:
        return {**FAMILY.facts(config, found), OWN_CLASS: self.name}

    def _task(self, config: RunConfig, facts: Mapping[str, Any]) -> VideoRetrievalTask:
        if facts.get(OWN_CLASS) != self.name:
            found = facts.get(OWN_CLASS, UnifiedTempMeSTOPModel.__name__)
            raise CheckpointError(f"this run trained a model of class {found}; model_class is {self.name}")
        model, data = sections(config)
        task = VideoRetrievalTask(
            self.model_class(model, data.datatype), config.train.micro_batches, grouped=self.grouped
        )
        names = [name for name, parameter in task.named_parameters() if parameter.requires_grad]
        self.added = tuple(name for name in names if name.split(".")[1] not in _OURS)
        return task

    def _stages(self, config: RunConfig) -> tuple[Stage, ...]:
        return tuple(replace(stage, trainable=(*stage.trainable, *self.added)) for stage in stages(config))
