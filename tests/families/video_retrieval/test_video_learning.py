"""What a tiny model learns in seconds: the direction of time, and which scene a text speaks of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from video_rows import everything

from sensorium import config as configuration
from sensorium.data.frames import DirectFrames, Look, Stretch
from sensorium.data.video_write import APART, write_video
from sensorium.families.video_retrieval.config import Kind, ModelConfig
from sensorium.families.video_retrieval.localise import timeline
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel
from sensorium.families.video_retrieval.words import open_tokenizer

ROWS, MARGIN = 8, 1e-5
COLOURS = ((214, 39, 40), (30, 60, 200))
Draw = Callable[[int, torch.Generator], Tensor]


def model_of(kind: Kind) -> UnifiedTempMeSTOPModel:
    torch.manual_seed(0)
    given = {"clip": "random:tiny", "kind": kind, "frames": 8, "words": 16, "train_clip": True}
    return UnifiedTempMeSTOPModel(configuration.build(ModelConfig, given))


def encoded(model: UnifiedTempMeSTOPModel, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    return open_tokenizer(model.config, model.words).encode(texts)


def train(model: UnifiedTempMeSTOPModel, draw: Draw, texts: Sequence[str], steps: int) -> None:
    """``draw(which, generator)``: one video that text number ``which`` speaks of."""
    ids, mask = encoded(model, texts)
    groups, generator = torch.arange(ROWS) % len(texts), torch.Generator().manual_seed(1)
    rates = [
        {"params": list(model.clip.requires_grad_().parameters()), "lr": 1e-4},
        {"params": [*model.tempme.parameters(), *model.stop.parameters()], "lr": 5e-3},
    ]
    optimizer = torch.optim.AdamW([rate for rate in rates if rate["params"]])
    model.train()
    for _ in range(steps):
        video = torch.stack([draw(int(which), generator) for which in groups])
        found = model(video, everything(ROWS), ids[groups], mask[groups], ids[groups], groups)
        optimizer.zero_grad()
        found["total_loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def moving(which: int, generator: torch.Generator) -> Tensor:
    """``[8, 3, 32, 32]``: a square that moves to the left, or the same frames the other way round."""
    x, y = (int(torch.randint(0, most, (1,), generator=generator)) for most in (3, 24))
    video = torch.full((8, 3, 32, 32), 90, dtype=torch.uint8)
    for frame in range(8):
        video[frame, :, y : y + 8, x + 3 * frame : x + 3 * frame + 8] = torch.tensor(COLOURS[0])[:, None, None]
    return video if which else video.flip(0)


@torch.no_grad()
def told_apart(model: UnifiedTempMeSTOPModel, texts: Sequence[str]) -> float:
    """Share of 64 videos, half of them the others backwards, that are nearer to their own text by more than noise."""
    ids, mask = encoded(model, texts)
    right = 0
    for which in range(2):
        generator = torch.Generator().manual_seed(9)  # the same squares both times
        video = torch.stack([moving(which, generator) for _ in range(32)])
        scores = model.encode_video(video, everything(32)).video @ model.encode_text(ids, mask).T
        right += int((scores[:, which] - scores[:, 1 - which] > MARGIN).sum())
    return right / 64


@pytest.mark.parametrize("kind", ["tempme", "unified", "tome"])
def test_the_direction_of_time_is_learned_by_models_of_time(kind: Kind) -> None:
    """Without them it cannot be: the twin is a model that sees the same frames without their order."""
    texts, model = ("moves left", "moves right"), model_of(kind)
    train(model, moving, texts, 120 if kind != "tome" else 20)
    found = told_apart(model, texts)
    assert found <= 0.5 if kind == "tome" else found >= 0.9


def test_a_text_finds_its_scene(tmp_path: Path) -> None:
    """A red scene of twelve seconds, then a blue one; trained on videos of one colour each."""

    def plain(which: int, generator: torch.Generator) -> Tensor:
        light = torch.randint(-25, 26, (1,), generator=generator)
        colour = (torch.tensor(COLOURS[which]) + light).clamp(0, 255).to(torch.uint8)
        return colour[None, :, None, None].expand(8, -1, 32, 32).contiguous()

    texts, model = ("red", "blue"), model_of("unified")
    train(model, plain, texts, 40)
    frames = ((float(second), Image.new("RGB", (32, 32), COLOURS[second >= 12])) for second in range(24))
    write_video(tmp_path / "two.mp4", frames, Fraction(1), APART)
    seen = timeline(model, DirectFrames(Look(32, 3.0, 192)), Stretch(tmp_path / "two.mp4"))
    ids, mask = encoded(model, texts)
    with torch.no_grad():
        red, blue = (seen.event(vector.numpy(), 1) for vector in model.encode_text(ids, mask))
    assert red.start_s < red.end_s <= 13
    assert 11 <= blue.start_s < blue.end_s
    assert red.frames[0].seconds < 12 <= blue.frames[0].seconds
