"""Image, text and audio from scratch: three towers, three stages, four sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensorium.engine.contract import Family
from sensorium.engine.settings import RunConfig
from sensorium.families.interaction.config import ModelConfig
from sensorium.families.interaction.data import DataConfig
from sensorium.families.interaction.evaluator import InteractionEvaluator
from sensorium.families.interaction.export import write_hf
from sensorium.families.interaction.plan import begin_stage, stages
from sensorium.families.interaction.presets import PRESETS
from sensorium.families.interaction.sources import facts, sources
from sensorium.families.interaction.task import InteractionTask, after_step, at_chance, initial
from sensorium.families.interaction.use import Searcher


def _task(config: RunConfig, facts: Mapping[str, Any]) -> InteractionTask:
    assert isinstance(config.model, ModelConfig)
    return InteractionTask(config.model, facts, config.train.micro_batches)


FAMILY = Family(
    name="interaction",
    summary="image, text and audio from scratch: three towers, three stages, four sizes",
    model=ModelConfig,
    data=DataConfig,
    presets=PRESETS,
    sources=sources,
    facts=facts,
    task=_task,
    stages=stages,
    initial=initial,
    begin_stage=begin_stage,
    after_step=after_step,
    at_chance=at_chance,
    evaluator=InteractionEvaluator,
    accumulation="inside-task",
    use=Searcher,
    exports={"hf": write_hf},
)
