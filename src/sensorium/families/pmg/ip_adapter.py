"""IP-Adapter (Ye et al. 2023, arXiv 2308.06721) by diffusers: Stable Diffusion told a picture's vector beside the text.

```
FOLDER/
    ip-adapter*.safetensors or .bin     one file; the plain kind, for Stable Diffusion 1.x
    image_encoder/                      its CLIP vision tower, config.json and weights
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sensorium.data.media import load_image
from sensorium.data.tastes import Taste
from sensorium.errors import ConfigError, DataError
from sensorium.families.pmg.diffusion import (
    open_scheduler,
    open_text_encoder,
    open_tokenizer,
    open_unet,
    open_vae,
    silent,
)
from sensorium.families.pmg.painting import Painter, Wish
from sensorium.families.pmg.sampling import Sampling, first_noise
from sensorium.families.pmg.task import PMGTask
from sensorium.parts.encoders_base import LOAD_ERRORS, computing, load_pretrained, reason

ENCODER = "image_encoder"
_ROWS = 16  # pictures of one pass


def weights_file(folder: Path) -> Path:
    """The adapter's file. Raises ConfigError that says what is missing."""
    found = [path for ending in ("safetensors", "bin") for path in sorted(folder.glob(f"ip-adapter*.{ending}"))]
    if len(found) != 1 or not (folder / ENCODER).is_dir():
        there = ", ".join(path.name for path in found) or "no such file"
        raise ConfigError(
            f"--ip-adapter {folder}: expected one ip-adapter*.safetensors or .bin (found {there}), and the folder "
            f"{ENCODER}/ (found {'it' if (folder / ENCODER).is_dir() else 'none'})"
        )
    return found[0]


@torch.no_grad()
def history_vectors(folder: Path, samples: Sequence[Taste], device: str) -> dict[tuple[str, ...], Tensor]:
    """Mean vector ``[d]`` of the pictures of each history, by its captions. Raises ConfigError and DataError."""
    from transformers import CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    load: Any = CLIPVisionModelWithProjection.from_pretrained
    encoder = load_pretrained(load, folder / ENCODER, folder.name, kind="image encoder").eval().to(device)
    side = encoder.config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    paths = list(dict.fromkeys(liked.path for taste in samples for liked in taste.history))
    vectors: dict[Path, Tensor] = {}
    for start in range(0, len(paths), _ROWS):
        some = paths[start : start + _ROWS]
        pixels = processor(images=[load_image(path) for path in some], return_tensors="pt")["pixel_values"]
        with computing(device):
            seen = encoder(pixel_values=pixels.to(device)).image_embeds.float().cpu()
        vectors |= dict(zip(some, seen.clone(), strict=True))
    found: dict[tuple[str, ...], Tensor] = {}
    known: dict[tuple[str, ...], list[Path]] = {}
    for taste in samples:
        captions, own = tuple(liked.caption for liked in taste.history), [liked.path for liked in taste.history]
        if known.setdefault(captions, own) != own:
            raise DataError(f"{taste.where}: another sample has the same captions in its history, but other pictures")
        found[captions] = torch.stack([vectors[path] for path in own]).mean(0)
    return found


class IpPainter(Painter):
    """Draws by the library's pipeline; ``soft`` of ``paint`` are the vectors of ``history_vectors``."""

    def __init__(self, task: PMGTask, folder: Path, how: Sampling, adapter: Path, scale: float) -> None:
        super().__init__(task, folder, how)
        weights = weights_file(adapter)
        dtype = next(task.unet.parameters()).dtype
        with silent():
            from diffusers import StableDiffusionPipeline

            self._pipeline = StableDiffusionPipeline(
                vae=open_vae(folder),
                text_encoder=open_text_encoder(folder),
                tokenizer=open_tokenizer(folder),
                unet=open_unet(folder, dtype),
                scheduler=open_scheduler(folder, how.scheduler),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            ).to(self.device)
            try:
                self._pipeline.load_ip_adapter(
                    str(adapter),
                    subfolder="",
                    weight_name=weights.name,
                    image_encoder_folder=None,
                    local_files_only=True,
                )
            except LOAD_ERRORS as error:
                raise ConfigError(f"{weights}: does not fit this Stable Diffusion ({reason(error)})") from error
        self._pipeline.set_ip_adapter_scale(scale)
        self._pipeline.set_progress_bar_config(disable=True)
        self._dtype = dtype

    def paint(
        self, wishes: Sequence[Wish], soft: Mapping[tuple[str, ...], Tensor], negative: str, batch: int
    ) -> Iterator[Image.Image]:
        """A picture for each wish, in their order, told its caption and the vector of its history."""
        length = self.task.shape.text_length
        for start in range(0, len(wishes), batch):
            some = wishes[start : start + batch]
            wanted = torch.stack([self.text(wish.target, length) for wish in some]).to(self._dtype)
            unwanted = self.text(negative, length)[None].expand(len(some), -1, -1).to(self._dtype)
            vectors = torch.stack([soft[wish.captions] for wish in some])[:, None].to(self.device, self._dtype)
            noise = first_noise([wish.seed for wish in some], self.task.shape, self.how.pixels)
            guided = self.how.guidance > 1
            with silent():
                yield from self._pipeline(
                    prompt_embeds=wanted,
                    negative_prompt_embeds=unwanted,
                    ip_adapter_image_embeds=[torch.cat([torch.zeros_like(vectors), vectors]) if guided else vectors],
                    latents=noise.to(self.device, self._dtype),
                    num_inference_steps=self.how.steps,
                    guidance_scale=self.how.guidance,
                ).images
