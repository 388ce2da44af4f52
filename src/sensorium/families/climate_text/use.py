"""Use of a trained model: questions about a field, answered in words.

>>> model = sensorium.load("runs/climate")                                                # doctest: +SKIP
>>> model.answer("Where is the strongest anomaly?", "data/training/val/climate_00001.pt") # doctest: +SKIP
>>> model.answer("How warm is it?", field, lat=(40, 55), lon=(-130, -110))                # doctest: +SKIP

Legend: B rows, T times, C channels, H rows from the south, W columns from the west, S tokens, E width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from sensorium.data.fields import channels, grammar
from sensorium.data.fields.channels import read_scalers
from sensorium.data.fields.places import time_text
from sensorium.engine.contract import Answered, Batch, Loaded, Looked
from sensorium.engine.settings import RunConfig
from sensorium.errors import ConfigError
from sensorium.families.climate_text.asked import Field, Known, Place, of_tensor, open_field
from sensorium.families.climate_text.attention import looked_at
from sensorium.families.climate_text.data import Inputs, collate
from sensorium.families.climate_text.data import texts as texts_of
from sensorium.families.climate_text.encoders import FieldFacts
from sensorium.families.climate_text.llm import open_tokenizer
from sensorium.families.climate_text.maps import FieldMap, draw
from sensorium.families.climate_text.model import ClimateTextFusion, Decoding
from sensorium.families.climate_text.prompts import Texts
from sensorium.families.climate_text.task import FROZEN_DTYPES, ClimateTextTask, sections

LAND = "FRLAND"


class Answers:
    """A trained model that answers. Fields are normalised and checked as in training."""

    def __init__(self, model: ClimateTextFusion, config: RunConfig, facts: Mapping[str, Any]) -> None:
        settings, data = sections(config)
        if settings.objective != "lm":
            raise ConfigError(f"this model was trained with objective {settings.objective}, which makes no text")
        if model.encoder is None:  # it was trained on tokens that were encoded before
            model.attach_encoder()
        self.model, self.facts, self.settings = model.eval(), facts, data.evaluation
        self.precision = config.train.precision
        self.known = Known(tuple(facts["names"]), tuple(facts["static"]), data.time_policy)
        self.texts: Texts = texts_of(open_tokenizer(settings), data)
        self.inputs = Inputs(data, self.texts, read_scalers(facts["scalers"]))

    @classmethod
    def of_run(cls, loaded: Loaded) -> Answers:
        """The ``use`` of the family."""
        assert isinstance(loaded.task, ClimateTextTask)
        return cls(loaded.task.model, loaded.config, loaded.facts)

    # --- what is asked about

    def field(
        self,
        given: Tensor | np.ndarray[Any, Any] | str | Path,
        place: Place | None = None,
        box: tuple[float, float, float, float] | None = None,
        variables: str | None = None,
    ) -> Field:
        """``[T, C, H, W]`` in the channels' units and their order (``facts["names"]``), with row 0 in the south unless
        ``place.lat`` falls; or a path: a ``.pt`` of a tree, or NetCDF, Zarr, GRIB, ``.npz`` with a map of ``variables``
        (``data/fields/varmap.py``), of which ``box`` (west, south, east, north) cuts out a part.

        Raises DataError and ConfigError: a channel that the model knows and the file lacks, another shape or unit.
        """
        if isinstance(given, str | Path):
            return open_field(Path(given).expanduser(), self.known, place or Place(), box, variables)
        return of_tensor(given, self.known, place or Place())

    # --- answers

    def answer(
        self,
        question: str,
        field: Field | Tensor | np.ndarray[Any, Any] | str | Path | None = None,
        lat: Sequence[float] | None = None,
        lon: Sequence[float] | None = None,
        time: str | Sequence[str] | None = None,
        said: Callable[[str], None] | None = None,
    ) -> str:
        """What the model says; without ``field`` from the question alone.

        ``lat``, ``lon``, ``time``: see ``asked.Place``; they win over those of a file. ``said`` is given the pieces of
        the text as they come. Raises DataError and ConfigError as ``field`` does.
        """
        if field is None and (lat is not None or lon is not None or time is not None):
            raise ConfigError("lat, lon and time say where a field lies; give the field, too")
        place = Place(lat, lon, time)
        if isinstance(field, Field) and place.given():
            raise ConfigError("the field was opened with its positions; leave lat, lon and time out")
        opened = field if field is None or isinstance(field, Field) else self.field(field, place)
        batch = self._batch(question, opened)
        streamer = None if said is None else _Pieces(self.texts, said)
        decoding = Decoding(self.texts.end, self.texts.pad, self.settings.max_new_tokens)
        with self._arithmetic():
            [ids] = self.model.generate(batch, decoding, streamer).tolist()
        return self.texts.said(ids)

    def compare(self, question: str, field: Field) -> tuple[str, str]:
        """The answers with and without the field."""
        return self.answer(question, field), self.answer(question)

    def answer_file(
        self, question: str, looked: Looked, said: Callable[[str], None], *, compare: bool, picture: bool
    ) -> Answered:
        """As ``contract.Answerer``."""
        field = self.field(looked.path, Place(time=looked.time), looked.box, looked.variables)
        text = self.answer(question, field, said=said)
        without = self.answer(question) if compare else None
        return Answered(text, without, self.map(question, text, field) if picture else None, field.notes)

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states of the text that know the field, ``[B, S, E]``, and their masked mean, ``[B, E]`` float32."""
        with torch.no_grad(), self._arithmetic():
            return self.model.features(batch)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """That of the training: frozen weights are kept in its numbers."""
        dtype = FROZEN_DTYPES[self.precision]
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()

    def _batch(self, question: str, field: Field | None, answer: str | None = None) -> Batch:
        """One row; with an ``answer`` that is its target."""
        if not question.strip():
            raise ConfigError("the question is empty")
        if field is None:
            climate = {**self._nothing(), "field_given": False}
        else:
            climate = self.inputs.of_sample(field.sample, self.known.names, self.known.static, field.where)
        target = [] if answer is None else self.texts.target(answer)
        row = {**climate, "prompt_ids": self.texts.prompt(question), "target_ids": target, "groups": 0}
        batch = collate([row], self.texts.pad)
        device = next(self.model.parameters()).device
        return {name: value.to(device) for name, value in batch.items()}

    def _nothing(self) -> dict[str, Any]:
        """A field of zeros, as large as those of training, which is masked out."""
        H, W = self.facts["sides"]
        shape = FieldFacts(**self.facts["fields"])
        return {
            "field": torch.zeros(shape.times, shape.channels, H, W),
            "static": torch.zeros(shape.static, H, W),
            "static_given": False,
            "climatology": torch.zeros(shape.channels, H, W),
            "climatology_given": False,
            "lat": torch.zeros(H),
            "lon": torch.zeros(W),
            "day_hour": torch.zeros(4),
            "input_time": 6.0,
            "lead_time": 0.0,
        }

    # --- maps

    def map(self, question: str, answer: str, field: Field) -> bytes:
        """A PNG: the variable that question or answer speak of, where the answer puts it, and what it looked at."""
        sample, labels = field.sample, self.facts["labels"]
        name = self._about(f"{question} {answer}", sample.names)
        values = sample.field[-1, sample.names.index(name)]
        departure = sample.climatology is not None
        if sample.climatology is not None:
            values = values - sample.climatology[sample.names.index(name)]
        known = channels.known(name)
        when = f", {time_text(sample.times[-1])[:16]}" if len(sample.times) else ""
        land = None
        if sample.static is not None and LAND in self.known.static:
            land = sample.static[self.known.static.index(LAND)].numpy()
        told = grammar.read(answer, list(labels.values())).get("location")
        return draw(
            FieldMap(
                title=f"{labels.get(name, name)}{when}" + (", departure from normal" if departure else ""),
                unit=self.facts["units"].get(name, known.unit if known is not None else ""),
                values=values.numpy(),
                lat=sample.lat,
                lon=sample.lon,
                anomaly=departure,
                land=land,
                told=None if told is None else str(told),
                attention=self._attention(question, answer, field),
            )
        )

    def _about(self, text: str, names: Sequence[str]) -> str:
        """The channel with the longest label in the text; the first one where there is none."""
        labels = {name: self.facts["labels"].get(name, name).lower() for name in names}
        spoken = [name for name in names if labels[name] in text.lower()]
        return max(spoken, key=lambda name: len(labels[name]), default=names[0])

    def _attention(self, question: str, answer: str, field: Field) -> np.ndarray[Any, Any] | None:
        """``[h, w]`` over windows; None of an empty answer, and where ``looked_at`` has none."""
        if not answer:
            return None
        with self._arithmetic():
            return looked_at(self.model, self._batch(question, field, answer))


class _Pieces(BaseStreamer):
    """Hands on text as far as it is sure: a character may have several tokens."""

    def __init__(self, texts: Texts, said: Callable[[str], None]) -> None:
        self.texts, self.say = texts, said
        self.ids: list[int] | None = None  # None: the prompt comes first
        self.told = ""

    def put(self, value: Tensor) -> None:
        """The tokens of the prompt, then one each time."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        text = self.texts.said(self.ids)
        if not text.endswith("\ufffd"):
            self._tell(text)

    def end(self) -> None:
        """Also what was held back."""
        self._tell(self.texts.said(self.ids or []))

    def _tell(self, text: str) -> None:
        if len(text) > len(self.told):
            self.say(text[len(self.told) :])
            self.told = text
