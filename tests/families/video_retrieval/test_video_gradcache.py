"""A batch in parts has the gradient of the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from video_rows import build, everything, texts, videos

from sensorium.families.video_retrieval.config import Kind
from sensorium.families.video_retrieval.task import VideoRetrievalTask

ROWS = 8
GROUPS = torch.tensor([0, 1, 2, 2, 3, 4, 0, 5])  # two captions of one video meet, within a part and across parts


def graded(kind: Kind, chunks: int, groups: Tensor = GROUPS, negatives: str = "effective") -> tuple[float, Tensor]:
    """The loss in float64, and the gradient of all that trains."""
    model = build(kind, {"loss": {"negatives": negatives, "stop_weight": 1.0}}).double().train()
    ids, mask = texts(ROWS)
    pixels = videos(ROWS).double() / 255
    batch = {"video": pixels, "video_mask": everything(ROWS), "input_ids": ids, "attention_mask": mask}
    loss = VideoRetrievalTask(model, chunks)({**batch, "groups": groups}).loss
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ["tempme", "stop", "unified"])
def test_parts_of_a_batch_have_its_gradient(kind: Kind) -> None:
    loss, gradient = graded(kind, 1)
    size = gradient.norm()
    for chunks in (2, 4):
        found, parts = graded(kind, chunks)
        assert found == pytest.approx(loss, rel=1e-6)
        assert (parts - gradient).norm() < 1e-6 * size
    # The twins: parts that do not meet, and captions of one video that push each other.
    for other in (graded(kind, 2, negatives="micro"), graded(kind, 2, torch.arange(ROWS))):
        assert other[0] != pytest.approx(loss, rel=1e-3)
        assert (other[1] - gradient).norm() > 1e-3 * size
