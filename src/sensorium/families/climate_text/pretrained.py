"""Opening a trained model by the name of a folder: what ``ClimateTextFusion.from_pretrained`` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sensorium import families, stored
from sensorium.families.climate_text.encoders import Encoder, FieldFacts
from sensorium.families.climate_text.model import ClimateTextFusion
from sensorium.families.climate_text.task import FROZEN_DTYPES, ClimateTextTask, sections
from sensorium.families.climate_text.use import Answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def open_model(
    path: Path,
    dtype: torch.dtype | None,
    llm: PreTrainedModel | None,
    encoder: Encoder | None,
    *,
    allow_other_base: bool = False,
) -> ClimateTextFusion:
    """See ``ClimateTextFusion.from_pretrained``."""
    found = stored.find(families.load("climate_text"), path.expanduser())
    settings, _ = sections(found.config)
    found.prepare()
    trained = FROZEN_DTYPES[found.config.train.precision]
    facts = FieldFacts(**found.facts["fields"])
    model = ClimateTextFusion(settings, facts, llm=llm, encoder=encoder, dtype=trained)
    found.give(ClimateTextTask(model), allow_other_base=allow_other_base)
    if model.encoder is None:
        model.attach_encoder(encoder)
    if settings.objective == "lm":
        model.answers = Answers(model, found.config, found.facts)
    return model.eval() if dtype is None else model.eval().to(dtype)
