"""What the frozen parts of Stable Diffusion make of pictures and texts, for the feature cache: encoded once.

Of a picture the VAE's moments are kept, not a sample; of a text the states of the text encoder at a given length. Both
are known by the bytes of what was encoded, by the digests of the weights and by every setting, and by no position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sensorium.families.pmg.diffusion import DiffusionShape, open_text_encoder, open_tokenizer, open_vae, text_ids
from sensorium.families.pmg.folders import part_digest
from sensorium.parts.encoders_base import Encoded, computing, fixed_batches

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, PreTrainedTokenizerBase

Resize = Literal["squash", "crop"]
_FORMAT = 1
_NO_POOLED = np.zeros(0, np.float32)
_ON_CPU, _ELSEWHERE = 4, 16  # rows of one pass


def square(picture: Image.Image, side: int, resize: Resize) -> Image.Image:
    """The picture as a square: squashed, or its middle."""
    box = None
    if resize == "crop":
        short = min(picture.size)
        left, top = (picture.width - short) / 2, (picture.height - short) / 2
        box = (left, top, left + short, top + short)
    return picture.resize((side, side), Image.Resampling.BICUBIC, box=box)


@dataclass
class VaeMoments:
    """Means and logarithms of variances ``[h * w, 2 C]``; an ``Encoder`` of the feature cache."""

    folder: Path
    shape: DiffusionShape
    side: int
    resize: Resize
    device: str

    modality: Literal["image"] = "image"
    pooled_width, has_vector, max_seconds = 0, False, None

    @property
    def name(self) -> str:
        """For people."""
        return f"VAE moments at {self.side} pixels"

    @property
    def width(self) -> int:
        """Numbers of one place."""
        return 2 * self.shape.channels

    @property
    def batch_size(self) -> int:
        """Pictures of one pass."""
        return _ON_CPU if self.device == "cpu" else _ELSEWHERE

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Everything that decides the moments."""
        digest = part_digest(self.folder / "vae")
        return {
            **{"pmg": _FORMAT, "encoder": "vae moments", "weights": digest, "side": self.side, "resize": self.resize},
            **{"width": self.width, "pooled_width": 0, "has_vector": False},
        }

    @cached_property
    def _vae(self) -> AutoencoderKL:
        vae: AutoencoderKL = open_vae(self.folder).to(self.device)
        return vae

    def prepare(self, sample: Any) -> Tensor:
        """An RGB picture as ``[3, side, side]`` in -1..1."""
        pixels = np.asarray(square(sample, self.side, self.resize), np.float32)
        return torch.from_numpy(pixels.transpose(2, 0, 1) / 127.5 - 1)

    def encode(self, prepared: Sequence[Any]) -> list[Encoded]:
        """In passes of one size, so that a picture's moments do not depend on the others."""
        found = []
        for real, rows in fixed_batches(len(prepared), self.batch_size):
            with computing(self.device):
                pixels = torch.stack([prepared[row] for row in rows]).to(self.device)
                moments = self._vae.encode(pixels).latent_dist.parameters[: len(real)]
            found += [Encoded(one.flatten(1).T.float().cpu().numpy().copy(), _NO_POOLED) for one in moments]
        return found


@dataclass
class TextStates:
    """States of a text at ``length`` tokens, ``[length, d]``; an ``Encoder`` of the feature cache."""

    folder: Path
    shape: DiffusionShape
    length: int
    device: str

    modality: Literal["text"] = "text"
    pooled_width, has_vector, max_seconds = 0, False, None

    @property
    def name(self) -> str:
        """For people."""
        return f"text states at {self.length} tokens"

    @property
    def width(self) -> int:
        """Numbers of one token."""
        return self.shape.told

    @property
    def batch_size(self) -> int:
        """Texts of one pass."""
        return _ON_CPU if self.device == "cpu" else _ELSEWHERE

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Everything that decides the states."""
        digests = [part_digest(self.folder / "text_encoder"), _tokenizer_digest(self.folder)]
        return {
            **{"pmg": _FORMAT, "encoder": "text states", "weights": digests, "length": self.length},
            **{"width": self.width, "pooled_width": 0, "has_vector": False},
        }

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return open_tokenizer(self.folder)

    @cached_property
    def _encoder(self) -> CLIPTextModel:
        encoder: CLIPTextModel = open_text_encoder(self.folder).to(self.device)
        return encoder

    def prepare(self, sample: Any) -> list[int]:
        """The text as tokens."""
        return text_ids(self._tokenizer, sample, self.length)

    def encode(self, prepared: Sequence[Any]) -> list[Encoded]:
        """In passes of one size."""
        found = []
        for real, rows in fixed_batches(len(prepared), self.batch_size):
            with computing(self.device):
                ids = torch.tensor([prepared[row] for row in rows], device=self.device)
                states = self._encoder(ids).last_hidden_state[: len(real)]
            found += [Encoded(one.float().cpu().numpy().copy(), _NO_POOLED) for one in states]
        return found

    def states(self, texts: Sequence[str]) -> Tensor:
        """``[texts, length, d]`` float32 on the CPU, without the cache."""
        encoded = self.encode([self.prepare(text) for text in texts])
        return torch.from_numpy(np.stack([one.tokens for one in encoded]))


def _tokenizer_digest(folder: Path) -> str:
    import hashlib

    files = [path for path in sorted((folder / "tokenizer").iterdir()) if path.suffix in (".json", ".txt")]
    return hashlib.sha256(b"\n".join(path.read_bytes() for path in files)).hexdigest()


def latents_of(moments: np.ndarray[Any, Any], noise: Tensor, shape: DiffusionShape) -> Tensor:
    """A sample of the moments ``[h * w, 2 C]``, times the VAE's factor: ``[C, h, w]`` float32. ``noise``: its shape."""
    channels, height, width = noise.shape
    values = torch.from_numpy(np.asarray(moments, np.float32)).T.reshape(2 * channels, height, width)
    mean, logvar = values[:channels], values[channels:].clamp(-30, 20)
    return (mean + (0.5 * logvar).exp() * noise) * shape.scaling
