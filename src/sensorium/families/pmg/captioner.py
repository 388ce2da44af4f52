"""Captions of pictures by a local model of transformers, each picture once: an encoder of the feature cache.

What is kept of a picture are the bytes of its caption in UTF-8. So a picture that was captioned before is never again,
whatever its name; a killed run goes on with what is missing; and another captioner has captions of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sensorium.data.feature_fill import FillOptions
from sensorium.data.features import cached, default_root
from sensorium.data.parsing import collapsed
from sensorium.errors import ConfigError
from sensorium.families.pmg.folders import part_digest
from sensorium.parts.encoders_base import (
    LOAD_ERRORS,
    Encoded,
    computing,
    fixed_batches,
    load_pretrained,
    quiet,
    reason,
)

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_TOKENS = 40  # of a caption
_FORMAT = 1
_ON_CPU, _ELSEWHERE = 4, 16  # pictures of one pass
_NO_POOLED = np.zeros(0, np.float32)
_MOST_BYTES = 2000  # of a caption; whole numbers up to 2048 are exact in float16


@dataclass
class Captioner:
    """An image-to-text model of a local folder, such as BLIP, GIT or ViT-GPT2; greedy. Raises ConfigError."""

    folder: Path
    device: str

    modality: Literal["image"] = "image"
    width, pooled_width, has_vector, max_seconds = 1, 0, False, None

    def __post_init__(self) -> None:
        if not (self.folder / "config.json").is_file():
            raise ConfigError(
                f"captioner {self.folder}: no config.json; expected the folder of an image-to-text model of "
                "transformers, such as BLIP"
            )

    @property
    def name(self) -> str:
        """For people, and for the report."""
        return f"captions of {self.folder.absolute().name}"

    @property
    def batch_size(self) -> int:
        """Pictures of one pass."""
        return _ON_CPU if self.device == "cpu" else _ELSEWHERE

    @cached_property
    def digest(self) -> str:
        """Of the weights and of every file that says how they are used."""
        found = hashlib.sha256(part_digest(self.folder).encode())
        for path in sorted(self.folder.iterdir()):
            if path.suffix in (".json", ".txt"):
                found.update(path.name.encode() + b"\0" + path.read_bytes())
        return found.hexdigest()

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Everything that decides the captions."""
        return {
            **{"pmg": _FORMAT, "encoder": "captions", "weights": self.digest, "most_tokens": MOST_TOKENS},
            **{"modality": "image", "width": 1, "pooled_width": 0, "has_vector": False},
        }

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        return open_parts(self.folder, self.device)

    def prepare(self, sample: Any) -> Any:
        """An RGB picture as it is: the processor takes it with the others of its pass."""
        return sample

    def encode(self, prepared: Sequence[Any]) -> list[Encoded]:
        """In passes of one size, so that a caption does not depend on the other pictures."""
        found = []
        for real, rows in fixed_batches(len(prepared), self.batch_size):
            texts = self._captions([prepared[row] for row in rows])
            found += [Encoded(_bytes(text), _NO_POOLED) for text in texts[: len(real)]]
        return found

    def _captions(self, pictures: Sequence[Image]) -> list[str]:
        model, processor, tokenizer = self._parts
        pixels = processor(images=list(pictures), return_tensors="pt")["pixel_values"].to(self.device)
        with computing(self.device):
            ids = model.generate(pixel_values=pixels, max_new_tokens=MOST_TOKENS, do_sample=False, num_beams=1)
        return [collapsed(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def open_parts(folder: Path, device: str) -> tuple[Any, Any, Any]:
    """Model, picture processor and tokenizer. Raises ConfigError naming folder and reason."""
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    load: Any = AutoModelForImageTextToText.from_pretrained
    model: Any = load_pretrained(load, folder, folder.name, kind="captioner")
    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, backend="pil"
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except LOAD_ERRORS as error:
        raise ConfigError(
            f"captioner {folder}: its picture processor or tokenizer cannot be loaded ({reason(error)}); give a folder "
            "with preprocessor_config.json and tokenizer.json"
        ) from error
    return model.eval().requires_grad_(False).to(device), processor, tokenizer


def _bytes(text: str) -> np.ndarray[Any, Any]:
    """A caption as ``[bytes, 1]``; an empty one is one zero."""
    data = text.encode()[:_MOST_BYTES] or b"\0"
    return np.frombuffer(data, np.uint8).astype(np.float32)[:, None]


def _text(tokens: np.ndarray[Any, Any]) -> str:
    return tokens[:, 0].astype(np.uint8).tobytes().decode(errors="ignore").strip("\0")


def captions(
    pictures: Mapping[str, Path], captioner: Captioner, options: FillOptions
) -> tuple[dict[str, str], list[str]]:
    """Caption by name of the pictures that have one, and what is wrong with the others (policy ``skip``).

    A killed call goes on where it was. Raises DataError for a broken picture under ``raise``, ConfigError.
    """
    contents = list(dict.fromkeys(pictures.values()))
    store = cached(captioner, contents, default_root(), options)
    texts = {path: _text(store.get(store.key(path)).tokens) for path in contents if str(path) not in store.skipped}
    found = {name: texts[path] for name, path in pictures.items() if texts.get(path)}
    return found, [f"{path}: {reason}" for path, reason in store.skipped.items()]
