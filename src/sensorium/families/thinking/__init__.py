"""Image-text-audio retrieval: frozen encoders, memory slots, a transformer walker."""

from __future__ import annotations

from sensorium.engine.contract import Family
from sensorium.families.thinking.config import ModelConfig
from sensorium.families.thinking.data import DataConfig, facts, sources
from sensorium.families.thinking.evaluator import RetrievalEvaluator
from sensorium.families.thinking.presets import PRESETS
from sensorium.families.thinking.task import build_task
from sensorium.families.thinking.use import Searcher

FAMILY = Family(
    name="thinking",
    summary="image-text-audio retrieval: frozen encoders, memory slots, a transformer walker",
    model=ModelConfig,
    data=DataConfig,
    presets=PRESETS,
    sources=sources,
    facts=facts,
    task=build_task,
    evaluator=RetrievalEvaluator,
    accumulation="inside-task",
    use=Searcher,
)
