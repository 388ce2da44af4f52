"""From files and texts to the tensors of the model's call, as evaluation shows them to it.

Legend: B rows, S side of a picture, L words, T mel frames.

    model, processor = load_model("outputs/checkpoints/best_model.pt")
    outputs = model(**processor(images=["photo.jpg"], texts=["a dog"], audio=["bark.wav"]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sensorium.data.items import Modality
from sensorium.data.media import load_audio, to_rgb
from sensorium.data.pictures import Pictures
from sensorium.errors import DataError
from sensorium.families.interaction.data import RESIZE, collate, middle
from sensorium.families.interaction.task import IMAGENET_MEAN, IMAGENET_STD
from sensorium.families.interaction.words import WordTokenizer
from sensorium.parts.mel import LogMel

Picture: TypeAlias = str | Path | Image.Image
Recording: TypeAlias = str | Path | np.ndarray


@dataclass(frozen=True)
class Processor:
    """``side``: of pictures. ``mean`` and ``std`` ``[bands]``: of the training set's log-mel frames. ``labels``: names
    of the classifier's first rows; the others were not trained."""

    tokenizer: WordTokenizer
    side: int
    mean: np.ndarray
    std: np.ndarray
    max_seconds: float
    labels: tuple[str, ...] = ()

    def __call__(
        self,
        *,
        images: Sequence[Picture] | None = None,
        texts: Sequence[str] | None = None,
        audio: Sequence[Recording] | None = None,
    ) -> dict[str, Tensor]:
        """What the model is called with: as many rows of each modality that is given.

        Pictures are files or Pillow's images, recordings files or mono sound ``[samples]`` float at 16 kHz. Gives
        ``images`` ``[B, 3, S, S]`` normalised, ``input_ids`` and ``attention_mask`` ``[B, L]``, ``audio``
        ``[B, T, 80]`` and ``audio_mask`` ``[B, T]``. Raises DataError naming the file and the reason, for an empty
        text, and when there is nothing, or not as many rows of each.
        """
        given = {"images": images, "texts": texts, "audio": audio}
        counts = {name: len(values) for name, values in given.items() if values is not None}
        if not counts or 0 in counts.values() or len(set(counts.values())) > 1:
            found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
            raise DataError(f"give as many images, texts and audio, at least one of one of them (found {found})")
        inputs: dict[str, Tensor] = {}
        if images is not None:
            mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
            inputs["images"] = (self.batch("image", images)["pixels"] / 255 - mean) / std
        if texts is not None:
            batch = self.batch("text", texts)
            inputs |= {"input_ids": batch["ids"], "attention_mask": batch["ids_mask"]}
        if audio is not None:
            batch = self.batch("audio", audio)
            inputs |= {"audio": batch["mel"], "audio_mask": batch["mel_mask"]}
        return inputs

    def batch(self, modality: Modality, values: Sequence[Picture] | Sequence[Recording]) -> dict[str, Tensor]:
        """Things of one modality as the task's batches hold them (data.py). Raises DataError as the call does."""
        name = {"text": "ids", "image": "pixels", "audio": "mel"}[modality]
        prepare = {"text": self._words, "image": self._pixels, "audio": self._frames}[modality]
        examples = [{"group": row, name: prepare(value)} for row, value in enumerate(values)]
        return collate(examples, self.tokenizer.pad)

    def _words(self, text: object) -> np.ndarray:
        return np.asarray(self.tokenizer.encode(str(text))[0])

    def _pixels(self, picture: object) -> np.ndarray:
        pictures = Pictures(round(self.side * RESIZE), None)
        if isinstance(picture, Image.Image):
            image = pictures.small(_rgb(picture))
        else:
            image = pictures.load(Path(str(picture)), "")
        return np.asarray(middle(image, self.side), np.uint8).transpose(2, 0, 1)

    def _frames(self, sound: object) -> np.ndarray:
        if not isinstance(sound, np.ndarray):
            sound = load_audio(Path(str(sound)), max_seconds=self.max_seconds)
        frames = LogMel(len(self.mean), self.max_seconds).prepare(sound).tokens
        stored = frames.astype(np.float16).astype(np.float32)  # as the cache keeps them
        standard: np.ndarray = (stored - self.mean) / self.std
        return standard


def _rgb(picture: Image.Image) -> Image.Image:
    try:
        return to_rgb(picture)
    except ValueError as error:
        raise DataError(f"a picture cannot be used ({error})") from None


def statistics(values: Sequence[float]) -> np.ndarray:
    """Mean or deviation of each band, from plain values."""
    return torch.tensor(values, dtype=torch.float32).numpy()
