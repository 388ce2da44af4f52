"""Merging by bipartite matching: who goes where, against a slow loop; what a merged token is worth; LoRA."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium.parts.lora import FusedLora
from sensorium.parts.merging import Match, Weighted, match, merge


def plain(rows: int, count: int) -> Weighted:
    return Weighted(torch.ones(rows, count), None)


def slowly(metric: Tensor, first: int, remove: int) -> tuple[list[int], dict[int, int]]:
    """New order of the tokens of one sequence that stay, and into which token each of the others goes."""
    a, b = list(range(first, len(metric), 2)), list(range(1 - first, len(metric), 2))
    best = {}
    for i in a:
        cosines = [float(functional.cosine_similarity(metric[i], metric[j], dim=0)) for j in b]
        best[i] = (max(cosines), b[cosines.index(max(cosines))])
    gone = sorted(a, key=lambda i: (-best[i][0], i))[:remove]
    return [i for i in a if i not in gone] + b, {i: best[i][1] for i in gone}


def as_told(found: Match) -> tuple[list[int], dict[int, int]]:
    kept, gone, into = (part[0].tolist() for part in (found.kept, found.gone, found.into))
    return kept, {i: kept[place] for i, place in zip(gone, into, strict=True)}


def cases(seed: int = 0) -> Iterator[tuple[Tensor, int, int]]:
    """200 of them, half with ties: vectors of four signs, whose cosines are exact."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(200):
        count = int(torch.randint(2, 24, (), generator=generator))
        remove = int(torch.randint(1, count // 2 + 1, (), generator=generator))
        metric = torch.randn(count, 5, generator=generator)
        yield (metric[:, :4].sign() if number % 2 else metric), number // 2 % 2, remove


def test_matching_equals_a_slow_loop() -> None:
    for metric, first, remove in cases():
        found = match(metric[None], plain(1, len(metric)), first=first, remove=remove)
        assert as_told(found) == slowly(metric, first, remove)


def test_the_other_parity_is_another_matching() -> None:
    """Negative twin."""
    differ = [
        as_told(match(metric[None], plain(1, len(metric)), first=1 - first, remove=remove))
        != slowly(metric, first, remove)
        for metric, first, remove in cases()
        if len(metric) > 2
    ]
    assert all(differ)


HAND: dict[str, tuple[list[list[float]], int, int, list[int], dict[int, int]]] = {
    # tokens 0 and 3 are alike, 2 and 1 nearly so
    "even": ([[1, 0], [0, 1], [0.1, 1], [1, 0]], 0, 1, [2, 1, 3], {0: 3}),
    "odd": ([[1, 0], [0, 1], [0.1, 1], [1, 0]], 1, 1, [1, 0, 2], {3: 0}),
    "all": ([[1, 0], [0, 1], [0.1, 1], [1, 0]], 0, 2, [1, 3], {0: 3, 2: 1}),
    "ties": ([[1, 0]] * 6, 0, 2, [4, 1, 3, 5], {0: 1, 2: 1}),
    "five": ([[1, 0], [0, 1], [1, 0], [0, 1], [0, 1]], 0, 1, [0, 2, 1, 3], {4: 1}),
}


@pytest.mark.parametrize(("metric", "first", "remove", "kept", "into"), HAND.values(), ids=HAND)
def test_matching_by_hand(
    metric: list[list[float]], first: int, remove: int, kept: list[int], into: dict[int, int]
) -> None:
    found = match(torch.tensor(metric)[None], plain(1, len(metric)), first=first, remove=remove)
    assert as_told(found) == (kept, into)
    places = found.moved_to()[0].tolist()
    assert [places[token] for token in kept] == list(range(len(kept)))
    assert {token: places[token] for token in into} == {token: kept.index(into[token]) for token in into}


@pytest.mark.parametrize("remove", [0, 3, 5])
def test_more_than_half_is_refused(remove: int) -> None:
    with pytest.raises(ValueError, match="at most"):
        match(torch.randn(2, 5, 3), plain(2, 5), first=0, remove=remove)


def test_a_merged_token_is_the_mean_of_all_that_it_is_made_of() -> None:
    torch.manual_seed(0)
    x, tokens, fixed = torch.randn(3, 13, 6), plain(3, 11), 2
    origin = torch.eye(11).expand(3, -1, -1)  # of each token: which of the first ones it is made of
    first, now = x, origin
    for _ in range(3):
        found = match(x[:, fixed:], tokens, first=0, remove=3 if x.shape[1] > 8 else 2)
        taken = torch.zeros(3, found.kept.shape[1], x.shape[1] - fixed).scatter(2, found.kept[..., None], 1.0)
        taken[torch.arange(3)[:, None], found.into, found.gone] = 1.0
        now = taken @ now
        x, tokens = merge(x, tokens, found, fixed)
    assert tokens.size.sum(1).tolist() == [11.0] * 3
    assert torch.equal(tokens.size, now.sum(2))
    assert (tokens.size > 2).any()
    expected = now @ first[:, fixed:] / now.sum(2, keepdim=True)
    torch.testing.assert_close(x[:, fixed:], expected, rtol=0, atol=1e-6)
    assert torch.equal(x[:, :fixed], first[:, :fixed])


def test_a_plain_average_would_be_another() -> None:
    """Negative twin: without sizes, three tokens do not weigh the same."""
    x = torch.tensor([[[0.0], [0.0], [3.0], [0.0]]])
    one = Match(torch.tensor([[2, 1, 3]]), torch.tensor([[0]]), torch.tensor([[1]]), half=2)
    x, tokens = merge(x, plain(1, 4), one, 0)
    two = Match(torch.tensor([[1, 2]]), torch.tensor([[0]]), torch.tensor([[0]]), half=1)
    sized, _ = merge(x, tokens, two, 0)
    unsized, _ = merge(x, plain(1, 3), two, 0)
    assert (sized[0, 0, 0].item(), unsized[0, 0, 0].item()) == (1.0, 1.5)


def test_what_is_salient_is_merged_last() -> None:
    torch.manual_seed(0)
    metric = torch.randn(50, 20, 8)
    chosen = (torch.rand(50, 20) < 0.3).float()
    for first in (0, 1):
        for protect, spared in ((4.0, True), (0.0, False)):
            found = match(metric, Weighted(torch.ones(50, 20), chosen), first=first, remove=6, protect=protect)
            gone = torch.zeros(50, 20).scatter(1, found.gone, 1.0).bool()
            a = torch.zeros(20).index_fill(0, torch.arange(first, 20, 2), 1.0).bool()
            wrong = (gone & chosen.bool()).any(1) & (a & ~gone & ~chosen.bool()).any(1)
            assert not wrong.any() if spared else wrong.any()  # the twin: without protection some are
            assert found.gone.shape == (50, 6)
        bare = match(metric, plain(50, 20), first=first, remove=6)
        assert torch.equal(found.kept, bare.kept)
        assert torch.equal(found.gone, bare.gone)


def test_saliency_is_averaged_by_size() -> None:
    tokens = Weighted(torch.tensor([[3.0, 1.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    found = Match(torch.tensor([[2, 1, 3]]), torch.tensor([[0]]), torch.tensor([[1]]), half=2)
    _, after = merge(torch.zeros(1, 4, 2), tokens, found, 0)
    assert after.saliency is not None
    assert after.size.tolist() == [[1.0, 4.0, 1.0]]
    assert after.saliency.tolist() == [[0.0, 0.75, 1.0]]


def test_what_has_no_size_changes_nothing() -> None:
    """Tokens of padding go first, and nothing goes into one of them, however alike; nothing becomes NaN."""
    torch.manual_seed(0)
    metric, x = torch.randn(60, 8, 4), torch.randn(60, 8, 4)
    size = torch.tensor([1.0, 1, 0, 0, 1, 1, 0, 0]).repeat(60, 1)
    size[-1] = 0
    found = match(metric, Weighted(size, None), first=0, remove=3)
    assert all({2, 6} <= set(gone) for gone in found.gone[:-1].tolist())
    real = size.gather(1, found.gone) > 0
    takers = size.gather(1, found.kept.gather(1, found.into))
    assert (takers[real] > 0).all()
    after, tokens = merge(x, Weighted(size, None), found, 0)
    other, _ = merge(torch.where(size[..., None] == 0, 1e6, x), Weighted(size, None), found, 0)
    assert torch.equal(after[tokens.size > 0], other[tokens.size > 0])
    assert after.isfinite().all()
    assert tokens.size[-1].tolist() == [0.0] * 5


def test_gradient_flows_to_all_that_is_merged() -> None:
    x = torch.randn(1, 6, 3, requires_grad=True)
    found = match(x, plain(1, 6), first=0, remove=3)
    merge(x, plain(1, 6), found, 0)[0].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.sum(), torch.tensor(9.0))
    assert (x.grad > 0).all()


# --- LoRA


def test_lora_begins_as_nothing_and_can_be_added_to_the_weight() -> None:
    torch.manual_seed(0)
    base, lora, x = nn.Linear(12, 30), FusedLora(12, 30, 4), torch.randn(5, 7, 12)
    assert sum(p.numel() for p in lora.parameters()) == 4 * (12 + 30)
    assert not lora(x).any()
    nn.init.normal_(lora.up)
    folded = functional.linear(x, base.weight + lora.weight(), base.bias)
    torch.testing.assert_close(base(x) + lora(x), folded, rtol=0, atol=1e-5)
    assert (base(x) - folded).abs().max() > 0.1  # the twin: it does something
