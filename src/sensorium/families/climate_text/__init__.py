"""Weather and climate fields into a language model: it reads a grid of numbers and writes text about it."""

from __future__ import annotations

from sensorium.engine.contract import Family
from sensorium.families.climate_text.config import ModelConfig
from sensorium.families.climate_text.data import DataConfig
from sensorium.families.climate_text.evaluator import ClimateEvaluator
from sensorium.families.climate_text.export import write_hf
from sensorium.families.climate_text.memory import demand
from sensorium.families.climate_text.outlook import outlook
from sensorium.families.climate_text.own import build_known
from sensorium.families.climate_text.presets import PRESETS
from sensorium.families.climate_text.sources import facts, sources
from sensorium.families.climate_text.task import group
from sensorium.families.climate_text.use import Answers

FAMILY = Family(
    name="climate_text",
    summary="weather and climate fields into a language model, with proof that the field is used",
    model=ModelConfig,
    data=DataConfig,
    presets=PRESETS,
    sources=sources,
    facts=facts,
    task=build_known,
    group=group,
    evaluator=ClimateEvaluator,
    use=Answers.of_run,
    proof="climate_used",
    exports={"hf": write_hf},
    outlook=outlook,
    demand=demand,
)
