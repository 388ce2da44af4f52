"""Text-to-video retrieval on CLIP: token merging across time (TempMe), prompts that follow change (STOP), or both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensorium.engine.contract import Family, Meter, Sources, Table
from sensorium.engine.settings import RunConfig
from sensorium.errors import CheckpointError
from sensorium.families.video_retrieval.config import ModelConfig
from sensorium.families.video_retrieval.data import DataConfig
from sensorium.families.video_retrieval.evaluator import VideoEvaluator
from sensorium.families.video_retrieval.export import write_embeddings, write_hf, write_merged
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel
from sensorium.families.video_retrieval.presets import PRESETS
from sensorium.families.video_retrieval.profile import profile_models
from sensorium.families.video_retrieval.sources import sources
from sensorium.families.video_retrieval.task import VideoRetrievalTask, begin_stage, group, sections, stages
from sensorium.families.video_retrieval.use import Searcher

OWN_CLASS = "model_class"  # in the facts of a run whose model is of a class built upon ours


def _facts(config: RunConfig, found: Sources) -> dict[str, Any]:
    """Nothing: the model follows from the configuration alone."""
    del config, found
    return {}


def _task(config: RunConfig, facts: Mapping[str, Any]) -> VideoRetrievalTask:
    if OWN_CLASS in facts:
        raise CheckpointError(
            f"this run trained a model of its own class, {facts[OWN_CLASS]}: open it from Python with that class "
            "(examples/video_retrieval)"
        )
    model, data = sections(config)
    return VideoRetrievalTask(UnifiedTempMeSTOPModel(model, data.datatype), config.train.micro_batches)


def _profile(config: RunConfig, meter: Meter) -> Table:
    model, data = sections(config)
    return profile_models(model, data.datatype, meter)


FAMILY = Family(
    name="video_retrieval",
    summary="text-video retrieval on CLIP: TempMe token merging, STOP prompts, or both in one pass",
    model=ModelConfig,
    data=DataConfig,
    presets=PRESETS,
    sources=sources,
    facts=_facts,
    task=_task,
    stages=stages,
    group=group,
    begin_stage=begin_stage,
    evaluator=VideoEvaluator,
    accumulation="inside-task",
    whole_gradient=True,
    use=Searcher,
    profile=_profile,
    exports={"hf": write_hf, "merged": write_merged, "embeddings": write_embeddings},
)
