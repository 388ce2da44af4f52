"""Personalised pictures: a frozen language model reads what a user liked and tells a frozen Stable Diffusion."""

from __future__ import annotations

from sensorium.engine.contract import Family
from sensorium.families.pmg.adapter_files import begin_with, write_adapter
from sensorium.families.pmg.config import DataConfig, ModelConfig
from sensorium.families.pmg.evaluator import PMGEvaluator
from sensorium.families.pmg.gallery import pictures
from sensorium.families.pmg.memory import demand
from sensorium.families.pmg.presets import PRESETS
from sensorium.families.pmg.prospects import outlook
from sensorium.families.pmg.sources import facts, sources
from sensorium.families.pmg.task import after_step, begin_stage, build, group
from sensorium.families.pmg.use import Pictures

FAMILY = Family(
    name="pmg",
    summary="pictures for a user's taste: soft prompts through a frozen language model into Stable Diffusion",
    model=ModelConfig,
    data=DataConfig,
    presets=PRESETS,
    sources=sources,
    facts=facts,
    task=build,
    evaluator=PMGEvaluator,
    group=group,
    whole_gradient=True,
    initial=begin_with,
    begin_stage=begin_stage,
    after_step=after_step,
    pictures=pictures,
    use=Pictures.of_run,
    proof="personal",
    outlook=outlook,
    demand=demand,
    exports={"hf": write_adapter},
)
