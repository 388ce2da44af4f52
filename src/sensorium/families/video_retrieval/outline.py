"""What a run is going to compute, said before anything slow: tokens and cost of its stages, how many videos meet."""

from __future__ import annotations

from collections.abc import Iterator

from sensorium.engine.settings import RunConfig
from sensorium.families.video_retrieval.config import switches
from sensorium.families.video_retrieval.plan import cost, frames_words, plan_of
from sensorium.families.video_retrieval.shape import clip_shape
from sensorium.families.video_retrieval.task import active_parts, sections, stages

FEW, PUBLISHED = 64, 128  # videos that meet in one loss


def outline(config: RunConfig) -> list[str]:
    """Lines for people. Raises ConfigError where the model cannot be built or nothing of it would train."""
    return [*_stages(config), *_negatives(config)]


def _stages(config: RunConfig) -> Iterator[str]:
    model, data = sections(config)
    shape, (frames, _) = clip_shape(model), frames_words(model, data.datatype)
    for stage in stages(config):
        plan = plan_of(model, shape, frames, switches(model, active_parts(model, stage.name)))
        spent = cost(plan, shape, model.width, model.slots).total / 1e9
        tokens = f"{frames} frames, clips x tokens {plan.trace(together=True)}"
        yield f"Stage {stage.name} of {model.kind}: {tokens}; {spent:.4g} GMACs a video"


def _negatives(config: RunConfig) -> Iterator[str]:
    apart = config.train.micro_batches if sections(config)[0].loss.negatives == "micro" else 1
    if (meeting := config.train.batch_size // apart) < FEW:
        yield f"Few negatives: {meeting} videos meet in one loss of training; in published recipes {PUBLISHED} do"
