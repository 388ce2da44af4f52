"""Frozen image encoders: CLIP's vision tower, ViT-like models of transformers, and EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipVisionModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sensorium.errors import ConfigError, DataError
from sensorium.parts import efficientnet
from sensorium.parts.encoders_base import (
    LOAD_ERRORS,
    Encoded,
    FrozenEncoder,
    Request,
    computing,
    config_digest,
    fixed_batches,
    freeze,
    load_pretrained,
    quiet,
    read_config,
    reason,
    weights_digest,
)

Pixels = Callable[[PIL.Image.Image], np.ndarray]
"""A picture -> float32 ``[3, H, W]``, the same H and W for every picture."""

# What an image processor does to the pixels; values that are None or absent are not used by it.
_PIXEL_KEYS = (
    "do_convert_rgb",
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "crop_pct",
    "do_pad",
    "pad_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


@dataclass(eq=False, kw_only=True)
class ImageEncoder(FrozenEncoder):
    """Tokens: last hidden state ``[n, width]``; pooled: the projected vector of CLIP, else the mean of the tokens."""

    pixels: Pixels
    run: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
    memory_format: torch.memory_format = torch.contiguous_format

    def prepare(self, sample: PIL.Image.Image) -> np.ndarray:
        if sample.mode != "RGB":
            raise DataError(f"the picture has mode {sample.mode}, not RGB; convert it first")
        try:
            pixels_CHW = self.pixels(sample)
        except ValueError as error:  # for example a strip of one pixel that no resize can handle
            raise DataError(f"the picture of {sample.width}x{sample.height} cannot be prepared: {error}") from error
        return np.ascontiguousarray(pixels_CHW, dtype=np.float32)

    def encode(self, prepared: Sequence[np.ndarray]) -> list[Encoded]:
        results = []
        for real, rows in fixed_batches(len(prepared), self.batch_size):
            x_BCHW = torch.from_numpy(np.stack([prepared[row] for row in rows]))
            with computing(self.device):
                x_BCHW = x_BCHW.to(self.device, memory_format=self.memory_format)
                tokens_BND, pooled_BD = self.run(self.module, x_BCHW)
            results += [self.encoded(tokens_BND[place], pooled_BD[place]) for place in range(len(real))]
        return results


def open_image_folder(folder: Path, request: Request) -> ImageEncoder:
    """A Hugging Face folder with a vision tower; of CLIP and SigLIP only that part is loaded. Raises ConfigError."""
    name = request.name
    config = read_config(folder)
    load, run = _vision_class(folder, config)
    model = load_pretrained(load, folder, name)
    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, backend="pil"
            )
    except LOAD_ERRORS as error:
        raise ConfigError(
            f"image encoder {name}: {folder} has no image processor that can be loaded "
            f"({reason(error)}); give a folder with preprocessor_config.json"
        ) from error
    return _transformer(model, run, processor, config_digest(config), request)


def random_image(width: int, layers: int, request: Request) -> ImageEncoder:
    """A CLIPVisionModelWithProjection with random weights, 32x32 pixels in 16 patches; the caller has seeded."""
    config = CLIPVisionConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 16),
        intermediate_size=4 * width,
        projection_dim=width,
        image_size=32,
        patch_size=8,
        initializer_factor=4.0,  # the usual 1 would leave so small a network next to linear
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _transformer(CLIPVisionModelWithProjection(config), _clip, processor, request.name, request)


def open_efficientnet(file: Path, request: Request) -> ImageEncoder:
    """EfficientNet-Lite0 from a state dict of tensors. Raises ConfigError if a weight is missing, foreign or broken."""
    model = efficientnet.EfficientNetLite0()
    try:
        with quiet():
            model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), strict=True)
    except LOAD_ERRORS as error:
        raise ConfigError(
            f"image encoder {request.name}: {file} does not hold the weights of EfficientNet-Lite0 "
            f"({reason(error)}); install its package again"
        ) from error
    identity = {
        "modality": "image",
        "class": "EfficientNetLite0",
        "width": efficientnet.WIDTH,
        "pooled_width": efficientnet.WIDTH,
        "has_vector": False,
        "weights": weights_digest(model),
        "pixels": {
            "pad": "white, to a square",
            "size": efficientnet.INPUT_SIZE,
            "resample": "bicubic",
            "mean": 127,
            "scale": 1 / 128,
        },
        "features": request.options.features,
        "pooled": "mean of the tokens",
    }
    return ImageEncoder(
        name=request.name,
        modality="image",
        # Twice as fast as the default layout on two cores.
        module=freeze(model, request.device).to(memory_format=torch.channels_last),
        device=request.device,
        identity=identity,
        width=efficientnet.WIDTH,
        pooled_width=efficientnet.WIDTH,
        has_vector=False,
        batch_size=request.batch_size(4, 64),
        features=request.options.features,
        pixels=efficientnet_pixels,
        run=_grid,
        memory_format=torch.channels_last,
    )


def efficientnet_pixels(picture: PIL.Image.Image) -> np.ndarray:
    """The whole picture, filled up to a square with white, at 224x224, ``(value - 127) / 128``: ``[3, 224, 224]``.

    Nothing is cut off and nothing distorted: cut-out pictures touch their borders.
    """
    side = max(picture.size)
    square = PIL.Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    size = (efficientnet.INPUT_SIZE, efficientnet.INPUT_SIZE)
    values_HWC = np.asarray(square.resize(size, PIL.Image.Resampling.BICUBIC), dtype=np.float32)
    return ((values_HWC - 127) / 128).transpose(2, 0, 1)


def _transformer(
    model: Any,
    run: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]],
    processor: Any,
    config: str,
    request: Request,
) -> ImageEncoder:
    def pixels(picture: PIL.Image.Image) -> np.ndarray:
        return np.asarray(processor(images=picture, return_tensors="np")["pixel_values"][0])

    freeze(model, request.device)
    width, pooled_width = _widths(model, run, pixels, request.device)
    values = processor.to_dict()
    identity = {
        "modality": "image",
        "class": type(model).__name__,
        "width": width,
        "pooled_width": pooled_width,
        "has_vector": run is _clip,
        "config": config,
        "weights": weights_digest(model),
        "processor": type(processor).__name__,
        "pixels": {key: values[key] for key in _PIXEL_KEYS if values.get(key) is not None},
        "features": request.options.features,
        "pooled": "projected vector" if run is _clip else "mean of the tokens",
    }
    return ImageEncoder(
        name=request.name,
        modality="image",
        module=model,
        device=request.device,
        identity=identity,
        width=width,
        pooled_width=pooled_width,
        has_vector=run is _clip,
        batch_size=request.batch_size(8, 64),
        features=request.options.features,
        pixels=pixels,
        run=run,
    )


def _widths(
    model: nn.Module, run: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]], pixels: Pixels, device: str
) -> tuple[int, int]:
    """Token and vector width as they come out for a white picture: configurations name them in many ways."""
    x_BCHW = torch.from_numpy(pixels(PIL.Image.new("RGB", (64, 64), "white"))[None]).to(device)
    with computing(device):
        tokens_BND, pooled_BD = run(model, x_BCHW)
    return tokens_BND.shape[-1], pooled_BD.shape[-1]


def _vision_class(folder: Path, config: Mapping[str, Any]) -> tuple[Callable[..., Any], Any]:
    kind = config.get("model_type")
    if kind in ("clip", "clip_vision_model"):
        if config.get("architectures") == ["CLIPVisionModel"]:
            return CLIPVisionModel.from_pretrained, _tokens
        vision = CLIPVisionConfig.from_pretrained(folder, local_files_only=True)
        if kind == "clip":  # of the whole model; the vision part's own value is not always the true one
            vision.projection_dim = config.get("projection_dim", vision.projection_dim)
        return partial(CLIPVisionModelWithProjection.from_pretrained, config=vision), _clip
    if kind in ("siglip", "siglip_vision_model"):
        return SiglipVisionModel.from_pretrained, _tokens
    return AutoModel.from_pretrained, _tokens


def _clip(model: nn.Module, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    output = model(pixel_values=x_BCHW)
    return output.last_hidden_state, output.image_embeds


def _tokens(model: nn.Module, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    hidden = model(pixel_values=x_BCHW).last_hidden_state
    tokens_BND = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden
    return tokens_BND, tokens_BND.mean(1)


def _grid(model: nn.Module, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    grid_BDHW = model(x_BCHW)
    return grid_BDHW.flatten(2).transpose(1, 2), grid_BDHW.mean((2, 3))
