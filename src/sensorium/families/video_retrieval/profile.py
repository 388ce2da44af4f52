"""The six models side by side: what they train, what they cost, how long they take. Random weights tell as much."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sensorium.engine.contract import Meter, Table
from sensorium.families.video_retrieval.clip import Clip, random_clip
from sensorium.families.video_retrieval.config import KINDS, LossConfig, ModelConfig, SwitchesConfig
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel
from sensorium.families.video_retrieval.plan import Cost, cost
from sensorium.families.video_retrieval.shape import clip_shape

COLUMNS = (
    "model",
    "parameters",
    "trainable",
    "GMACs",
    "of matching",
    "tokens",
    "ms",
    "videos/s",
    "peak GB",
)


@dataclass(frozen=True)
class Profile:
    """One model. ``parameters`` of both towers and everything beside them; ``seconds`` of one pass over the meter's
    rows; ``peak`` in bytes, None where the system does not tell."""

    name: str
    parameters: int
    trainable: int
    cost: Cost
    trace: str
    seconds: float
    peak: int | None


def profile_models(config: ModelConfig, datatype: str, meter: Meter) -> Table:
    """Every kind with the numbers of ``config``; where that has switches, its own variant, too."""
    found = list(profiles(config, datatype, meter))
    rows = [
        (
            one.name,
            one.parameters,
            one.trainable,
            f"{one.cost.total / 1e9:.2f}",
            f"{one.cost.matching / 1e9:.2f}",
            one.trace,
            one.seconds * 1000,
            meter.rows / one.seconds,
            None if one.peak is None else f"{one.peak / 1e9:.2f}",
        )
        for one in found
    ]
    shape = clip_shape(config)
    note = (
        f"{meter.device}, float32, {meter.rows} video{'s' * (meter.rows > 1)} at a time, patches of {shape.patch} of "
        f"{shape.resolution} pixels, random weights, LoRA folded in. tokens: clips x tokens of a clip, block by block, "
        "before and after its merge; blocks that are alike stand together. GMACs are 1e9 multiply-accumulates of a "
        "video, without those of matching. peak: weights and everything else while videos are encoded."
    )
    return Table(f"Models of video_retrieval, {datatype}", COLUMNS, tuple(rows), note)


def profiles(config: ModelConfig, datatype: str, meter: Meter) -> Iterator[Profile]:
    """One model after the other, on the meter's device, over the same towers."""
    clip = random_clip(clip_shape(config)).to(meter.device)
    for one in variants(config):
        yield profile_of(one, datatype, meter, clip)


def variants(config: ModelConfig) -> list[ModelConfig]:
    """The six kinds without switches, and ``config`` where it has some. What is learned does not matter here."""
    plain = config.model_copy(update={"loss": LossConfig(), "switches": SwitchesConfig()})
    found = [plain.model_copy(update={"kind": kind}) for kind in KINDS]
    return found if config.switches == SwitchesConfig() else [*found, config]


def name_of(config: ModelConfig) -> str:
    """The kind and its switches: ``tempme -merge``."""
    given = ((name, value) for name, value in config.switches.model_dump().items() if value is not None)
    return " ".join([config.kind, *(f"{'+' if value else '-'}{name}" for name, value in given)])


def profile_of(config: ModelConfig, datatype: str, meter: Meter, clip: Clip) -> Profile:
    """One model, timed while it encodes videos."""
    model = UnifiedTempMeSTOPModel(config, datatype, clip).to(meter.device).eval()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parameters = sum(p.numel() for p in model.parameters())
    model.fold_lora()  # which has begun as nothing, so that the towers stay as they are
    encode = encoding(model, meter.rows, meter.device)
    peak = meter.peak(encode)
    spent = cost(model.plan, clip.shape, config.width, config.slots)
    trace = model.plan.trace(together=True)
    return Profile(name_of(config), parameters, trainable, spent, trace, meter.seconds(encode), peak)


def made_up(model: UnifiedTempMeSTOPModel, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Videos of noise, and their mask."""
    side = model.clip.shape.resolution
    generator = torch.Generator().manual_seed(0)
    shape = (rows, model.frames, 3, side, side)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return video.to(device), torch.ones(shape[:2], dtype=torch.bool, device=device)


def encoding(model: UnifiedTempMeSTOPModel, rows: int, device: torch.device) -> Callable[[], object]:
    """What is timed: one pass over so many videos."""
    video, mask = made_up(model, rows, device)

    def encode() -> object:
        with torch.inference_mode():
            return model.encode_video(video, mask)

    return encode
