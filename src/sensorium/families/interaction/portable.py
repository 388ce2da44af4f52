"""The trained model in the guide's ``.pt`` file: ``model_state_dict`` and plain values, for whoever loads it.

The heads that only training needs are not in it: it fits ``create_model(size)`` strictly.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium import config as configuration
from sensorium import reading
from sensorium.data import media
from sensorium.engine.contract import Loaded
from sensorium.errors import CheckpointError
from sensorium.families.interaction.config import ModelConfig
from sensorium.families.interaction.data import middle
from sensorium.families.interaction.model import InteractionModel
from sensorium.families.interaction.task import InteractionTask, normalised
from sensorium.families.interaction.words import Texts, Vocabulary, WordTokenizer
from sensorium.parts.encoders_base import SAMPLE_RATE
from sensorium.parts.mel import log_mel

_ERRORS = (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, LookupError, TypeError)


def portable_content(loaded: Loaded, *, stage: str, epoch: float, metrics: Mapping[str, float]) -> dict[str, Any]:
    """What stands in the file but for what the engine adds. ``metrics``: of the validation."""
    task, facts = loaded.task, loaded.facts
    assert isinstance(task, InteractionTask)
    model = task.config
    return {
        "model_state_dict": {name: tensor.detach().cpu() for name, tensor in task.model.state_dict().items()},
        "model": configuration.dump(model),
        "size": model.size,
        "embed_dim": model.fused_width,
        "num_classes": model.num_classes,
        "vocabulary": facts["vocabulary"],
        "mel": {"mean": facts["mel_mean"], "std": facts["mel_std"]},
        "labels": list(facts["labels"]),
        "stage": stage,
        "epoch": epoch,
        "metrics": dict(metrics),
    }


@dataclass(frozen=True)
class Processor:
    """Makes texts, pictures and recordings ready for the model. ``labels``: names of the first rows of the logits."""

    tokenizer: WordTokenizer
    side: int
    mel_mean: np.ndarray
    mel_std: np.ndarray
    labels: tuple[str, ...]

    def texts(self, texts: Sequence[str]) -> Texts:
        """``input_ids`` and ``attention_mask``."""
        return self.tokenizer.batch(texts)

    def images(self, paths: Sequence[str | Path]) -> Tensor:
        """``[B, 3, S, S]``: the middle squares. Raises DataError for what is no picture."""
        squares = [np.asarray(middle(media.load_image(Path(path)), self.side), np.uint8) for path in paths]
        return normalised(torch.from_numpy(np.stack(squares).transpose(0, 3, 1, 2)))

    def audio(self, path: str | Path) -> Tensor:
        """``[1, T, bands]`` of one recording. Raises DataError for what is none."""
        frames = log_mel(media.load_audio(Path(path), SAMPLE_RATE), len(self.mel_mean))
        return torch.from_numpy((frames - self.mel_mean) / self.mel_std)[None]


def load_model(path: str | Path) -> tuple[InteractionModel, Processor]:
    """The model of a ``.pt`` file, on the CPU and in evaluation mode, and what makes its inputs ready.

    Raises CheckpointError for a file that this program did not write.
    """
    place = Path(path)
    try:
        with reading.open_plain(place) as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
        config = configuration.build(ModelConfig, content["model"], str(place))
        model = InteractionModel(config)
        model.load_state_dict(content["model_state_dict"])
        mel = content["mel"]
        mean, std = (np.asarray(mel[name], np.float32) for name in ("mean", "std"))
        tokenizer = WordTokenizer(Vocabulary.of(content["vocabulary"]), config.max_tokens)
        processor = Processor(tokenizer, config.image_size, mean, std, tuple(content["labels"]))
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read ({error.strerror or 'damaged'})") from error
    except _ERRORS as error:
        raise CheckpointError(f"{place}: damaged, or no model of `interaction` ({type(error).__name__})") from error
    return model.eval(), processor
