"""Image-text-audio retrieval: frozen encoders, memory slots, a transformer walker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensorium.engine.contract import Family
from sensorium.engine.settings import RunConfig
from sensorium.families.thinking.config import ModelConfig
from sensorium.families.thinking.data import DataConfig, facts, sources
from sensorium.families.thinking.evaluator import RetrievalEvaluator
from sensorium.families.thinking.export import write_hf
from sensorium.families.thinking.export_onnx import write_onnx
from sensorium.families.thinking.model import EncoderFacts
from sensorium.families.thinking.presets import PRESETS
from sensorium.families.thinking.task import ThinkingTask, after_step, at_chance
from sensorium.families.thinking.use import Searcher


def _task(config: RunConfig, facts: Mapping[str, Any]) -> ThinkingTask:
    assert isinstance(config.model, ModelConfig)
    widths = {modality: EncoderFacts(**fact) for modality, fact in facts["modalities"].items()}
    return ThinkingTask(config.model, widths, config.seed, config.train.micro_batches)


FAMILY = Family(
    name="thinking",
    summary="image-text-audio retrieval: frozen encoders, memory slots, a transformer walker",
    model=ModelConfig,
    data=DataConfig,
    presets=PRESETS,
    sources=sources,
    facts=facts,
    task=_task,
    after_step=after_step,
    at_chance=at_chance,
    evaluator=RetrievalEvaluator,
    accumulation="inside-task",
    use=Searcher,
    exports={"hf": write_hf, "onnx": write_onnx},
)
