"""The prompters: change is found where it is, prompts go there, and slots count where clips differ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from video_rows import build, everything, videos

from sensorium.families.video_retrieval.prompters import SpatialPrompter, TemporalPrompter
from sensorium.families.video_retrieval.state import TokenState, begin, key_bias

SIDE, SELECT, WIDTH = 6, 3, 24


def spatial(alpha: float = 0.0, side: int = SIDE) -> SpatialPrompter:
    torch.manual_seed(0)
    return SpatialPrompter(WIDTH, 8, side, SELECT, alpha)


def still(rows: int = 1, frames: int = 7, side: int = SIDE) -> Tensor:
    """``[rows, frames, side * side, WIDTH]``: every frame the same."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 1, side * side, WIDTH, generator=generator).repeat(1, frames, 1, 1)


def chosen(x: Tensor, prompter: SpatialPrompter, alive: Tensor | None = None) -> Tensor:
    looked = torch.zeros(x.shape[:3])
    with torch.no_grad():
        return prompter(x, looked, everything(len(x), x.shape[1]) if alive is None else alive)[1]


# --- patches


def test_so_many_patches_are_selected_in_every_frame() -> None:
    choice = chosen(torch.randn(2, 7, 36, WIDTH), spatial())
    assert ((choice == 0) | (choice == 1)).all()
    assert (choice.sum(-1) == SELECT).all()


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 3), (5, 1)])
def test_a_patch_that_changes_is_found_where_it_is(row: int, column: int) -> None:
    x = still()
    x[0, 4, row * SIDE + column] += torch.randn(WIDTH)  # in one frame: a change into it and a change out of it
    choice = chosen(x, spatial()).view(7, SIDE, SIDE)
    assert choice[3, row, column] == 1
    assert choice[5, row, column] == 1


def test_a_wrong_order_of_axes_would_be_seen() -> None:
    """Negative twin: read as columns before rows, the patch is found elsewhere."""
    x = still()
    x[0, 4, 2 * SIDE + 3] += torch.randn(WIDTH)
    turned = x.unflatten(2, (SIDE, SIDE)).transpose(2, 3).flatten(2, 3)
    choice = chosen(turned, spatial()).view(7, SIDE, SIDE)
    assert choice[3, 3, 2] == 1
    assert choice[3, 2, 3] == 0


def test_what_clip_looks_at_is_selected_when_nothing_else_counts() -> None:
    looked = torch.zeros(1, 7, 36)
    looked[0, :, [5, 17, 30]] = 0.3
    with torch.no_grad():
        _, choice = spatial(alpha=0.99)(torch.randn(1, 7, 36, WIDTH), looked, everything(1, 7))
    assert choice[0, 2].nonzero().flatten().tolist() == [5, 17, 30]


def test_a_still_video_does_not_change_anywhere() -> None:
    prompter = spatial()
    e = prompter.down(torch.nn.functional.layer_norm(still(), (WIDTH,)))
    assert prompter.change(prompter._padded(e)).abs().max() < 1e-6
    assert prompter.change(prompter._padded(e + torch.arange(7)[:, None, None])).abs().max() > 0.4


def test_padding_is_no_change() -> None:
    x, alive = torch.randn(1, 7, 36, WIDTH), everything(1, 7)
    alive[0, 5:] = False
    choice = chosen(x, spatial(), alive)
    assert torch.equal(choice[:, :5], chosen(x[:, :5], spatial()))
    assert not choice[:, 5:].any()
    assert not torch.equal(choice[:, :5], chosen(x, spatial())[:, :5])  # the twin
    alive[0, 0] = False
    assert torch.equal(chosen(x, spatial(), alive)[:, 1:5], chosen(x[:, 1:5], spatial()))


def test_the_choice_has_the_gradient_of_a_sigmoid() -> None:
    prompter = spatial()
    _, choice = prompter(torch.randn(1, 7, 36, WIDTH), torch.zeros(1, 7, 36), everything(1, 7))
    choice[0, 2].max().backward()
    assert prompter.change.weight.grad is not None
    assert prompter.change.weight.grad.any()


def test_prompts_begin_as_nothing_and_go_to_selected_patches_only() -> None:
    prompter, x = spatial(), torch.randn(1, 7, 36, WIDTH)
    update, _ = prompter(x, torch.zeros(1, 7, 36), everything(1, 7))
    assert not update.any()
    torch.nn.init.normal_(prompter.up.weight)
    update, choice = prompter(x, torch.zeros(1, 7, 36), everything(1, 7))
    assert not update[choice == 0].any()
    assert update[choice == 1].any()


@torch.no_grad()
def test_the_model_marks_the_square_of_pixels_that_changes() -> None:
    """From pixels on: the patch in which frames differ is selected in all of them, after clips were joined, too."""
    for changes in ({}, {"spatial_block": 2, "switches": {"merge": False}}):
        model = build("unified", {**changes, "alpha": 0.0}, begun=True)
        row, column = 2, 1
        video = videos(1)[:, :1].repeat(1, 8, 1, 1, 1)
        square = (..., slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        video[square] = videos(1)[square]
        block = model.config.spatial_block
        state = model.trace(video, everything(1))[block + 1]
        assert state.saliency is not None
        assert state.source is not None
        marks = state.saliency.flatten(1).gather(1, state.source).view(8, 17)
        assert not marks[:, 0].any()
        assert (marks[:, 1 + 4 * row + column] > 0).all()


# --- boundaries


def temporal(slots: int = 4) -> TemporalPrompter:
    torch.manual_seed(0)
    return TemporalPrompter(WIDTH, 8, slots, 1.0)


def clips(*scenes: int, seed: int = 0) -> TokenState:
    """A clip of one frame and nine patches for each number; the same number, the same tokens."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(max(scenes) + 1, 10, WIDTH, generator=generator)
    return begin(kinds[list(scenes)][None], everything(1, len(scenes)), traced=False)


def sizes(state: TokenState, group: int) -> Tensor:
    with torch.no_grad():
        return temporal().boundaries(state, group)[1].exp()[0]


def test_alike_clips_have_no_content_and_the_fewest_slots() -> None:
    prompter = temporal()
    content, log_size = prompter.boundaries(clips(0, 0, 0), 3)
    assert not content.any()
    least = prompter.count(torch.zeros(()))
    expected = torch.sigmoid((least - torch.arange(4) - 0.5) / 0.25)
    torch.testing.assert_close(log_size.exp()[0, 0, 0], expected)
    assert least < 0.01
    nearly = clips(0, 0, 0)
    nearly.x[:, 1] += 0.5 * torch.randn_like(nearly.x[:, 1])  # the twin
    content, other = prompter.boundaries(nearly, 3)
    assert content.any()
    assert (other > log_size).all()


def test_a_cut_raises_the_count_at_its_own_boundary() -> None:
    calm, cut = sizes(clips(0, 0, 0, 0), 4)[0], sizes(clips(0, 0, 1, 1), 4)[0]
    assert torch.equal(cut[0], calm[0])
    assert torch.equal(cut[2], calm[2])
    assert cut[1].sum() > calm[1].sum() + 1


def test_counts_do_not_depend_on_other_boundaries_or_videos() -> None:
    many = sizes(clips(0, 1, 2, 3), 4)[0]
    assert torch.allclose(sizes(clips(0, 1, 2, 3), 2)[0, 0], many[0], atol=1e-6)
    assert torch.allclose(sizes(clips(0, 1), 2)[0, 0], many[0], atol=1e-6)


def test_selected_tokens_count_more() -> None:
    state = clips(0, 1)
    salient = torch.zeros(1, 2, 10)
    salient[:, :, 3] = 1.0
    marked = TokenState(state.x, state.size, n_cls=1, saliency=salient)
    prompter = temporal()
    assert not torch.equal(prompter.boundaries(state, 2)[0], prompter.boundaries(marked, 2)[0])
    prompter.beta = 0.0
    torch.testing.assert_close(prompter.boundaries(state, 2)[0], prompter.boundaries(marked, 2)[0])


def test_slots_of_many_never_become_nan() -> None:
    """With 64 slots the last sizes are too small for float32; their logarithms and gradients are not."""
    torch.manual_seed(0)
    prompter = TemporalPrompter(WIDTH, 8, 64, 1.0)
    made = prompter(clips(0, 0, 1), 3, None)
    assert made.log_size.isfinite().all()
    assert made.log_size.exp().min() == 0
    state = TokenState(made.x, torch.ones(1, 1, 0), n_cls=0, n_slot=128, slot_log=made.log_size)
    (made.log_size.sum() + key_bias(state).sum()).backward()
    assert prompter.count_slope.grad is not None
    assert prompter.count_slope.grad.isfinite()
    assert prompter.count_slope.grad != 0
