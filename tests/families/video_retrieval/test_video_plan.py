"""The token plan: traces, parameters and cost to the printed digit, from integers and from the real modules."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from video_rows import on_paper

from sensorium import config as configuration
from sensorium.errors import ConfigError
from sensorium.families.video_retrieval import plan as planning
from sensorium.families.video_retrieval import presets
from sensorium.families.video_retrieval.clip import Clip
from sensorium.families.video_retrieval.config import KINDS, ModelConfig
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel
from sensorium.families.video_retrieval.plan import Recipe, cost, make_plan, selected
from sensorium.families.video_retrieval.shape import RANDOM, ClipShape, clip_shape

B32, B16 = {"clip": "random:b32"}, {"clip": "random:b16"}

# Model, trainable parameters, GMACs as they are printed, number of tokens at the end.
MODELS: list[tuple[dict[str, Any], int, str, int]] = [
    ({**B32, "kind": "clip_mean"}, 0, "52.90", 600),
    ({**B32, "kind": "lora"}, 491_520, "52.90", 600),
    ({**B32, "kind": "tome"}, 491_520, "33.76", 168),
    ({**B32, "kind": "tempme"}, 507_648, "34.70", 97),
    ({**B32, "kind": "stop"}, 414_278, "54.67", 608),
    ({**B32, "kind": "unified"}, 921_926, "35.19", 105),
    ({**B16, "kind": "clip_mean"}, 0, "210.8", 2364),
    ({**B16, "kind": "tome"}, 491_520, "124.4", 492),
    ({**B16, "kind": "tempme"}, 507_648, "121.1", 127),
    ({**B16, "kind": "stop"}, 414_278, "230.5", 2372),
    ({**B16, "kind": "unified"}, 921_926, "121.9", 135),
    ({**B32, "kind": "clip_mean", "frames": 64}, 0, "282.1", 3200),
    ({**B32, "kind": "tempme", "frames": 64}, 556_032, "185.9", 500),
    ({**B32, "kind": "unified", "frames": 64}, 970_310, "188.5", 512),
    ({**B32, "kind": "tempme", "switches": {"merge": False}}, 507_648, "54.10", 600),
    ({**B32, "kind": "tempme", "switches": {"group": False}}, 491_520, "34.89", 108),
    ({**B32, "kind": "stop", "groups": {0: 12}}, 209_346, "63.8", 644),
    ({**B32, "kind": "unified", "frame_merge": 1}, 921_926, "39.2", 126),
    ({**B32, "kind": "unified", "cut_cross_pct": 20}, 921_926, "36.6", 149),
    ({**B32, "kind": "unified", "cut_cross_pct": 20, "cut_inside_pct": 5}, 921_926, "37.3", 185),
    ({**B32, "kind": "unified", "frame_merge": 1, "cut_cross_pct": 25}, 921_926, "39.9", 152),
]
IDS = [" ".join(str(value) for value in model.values()) for model, *_ in MODELS]


def digits(number: int, printed: str) -> str:
    """In units of 1e9, as many decimals as ``printed`` has."""
    return f"{number / 1e9:.{len(printed.partition('.')[2])}f}"


def planned(model: UnifiedTempMeSTOPModel) -> int:
    return cost(model.plan, model.clip.shape, model.config.width, model.config.slots).total


class Counter(TorchFunctionMode):
    """Multiply-accumulates of the image tower and its prompters while videos are encoded, as the modules do them."""

    def __init__(self, model: UnifiedTempMeSTOPModel) -> None:
        super().__init__()
        self.total, self.parts = 0, (model.clip.vision, model.stop)
        layers = [module for part in self.parts for module in part.modules()]
        counted = [m for m in layers if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d)]
        self.handles = [m.register_forward_hook(self.layer) for m in counted if m is not model.clip.vision.to_shared]

    def layer(self, module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module.weight, Tensor)
        self.total += output.numel() * module.weight[0].numel()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is functional.scaled_dot_product_attention:
            queries, keys = args[0].shape, args[1].shape
            self.total += 2 * queries.numel() * keys[-2]
        return function(*args, **(kwargs or {}))


def measured(model: UnifiedTempMeSTOPModel, rows: int = 2) -> int:
    """Per video, from what the modules are given."""
    side = model.clip.shape.resolution
    video = torch.empty(rows, model.frames, 3, side, side, device="meta")
    with Counter(model) as counter:
        found = model.encode_video(video, torch.empty(rows, model.frames, dtype=torch.bool, device="meta"))
    assert found.video.shape == (rows, model.clip.shape.embed)
    assert found.frames.shape == (rows, model.frames, model.clip.shape.embed)
    assert (found.slots is not None) == (model.plan.blocks[-1].slots > 0)
    for handle in counter.handles:
        handle.remove()
    return counter.total // rows


@pytest.mark.parametrize(("model", "trainable", "gmacs", "tokens"), MODELS, ids=IDS)
def test_parameters_and_cost_are_those_of_the_table(
    model: Mapping[str, Any], trainable: int, gmacs: str, tokens: int
) -> None:
    built = on_paper(model)
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == trainable
    last = built.plan.blocks[-1]
    assert last.clips * last.after == tokens
    assert digits(planned(built), gmacs) == gmacs
    assert measured(built) == planned(built)


def test_the_count_of_the_modules_can_differ_from_the_plan() -> None:
    """Negative twin: one layer more than planned is seen."""
    built = on_paper({**B32, "kind": "unified"})
    built.clip.vision.blocks[3].fc2 = nn.Sequential(nn.Linear(3072, 768), nn.Linear(768, 768)).to("meta")
    assert measured(built) - planned(built) == 12 * 42 * 768 * 768


def test_the_default_costs_little() -> None:
    built = on_paper({**B32, "kind": "unified"})
    assert planned(built) <= 37e9
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) <= 2_000_000


def test_the_prompters_have_their_parameters() -> None:
    stop = on_paper({**B32, "kind": "stop"}).stop
    assert stop.spatial is not None
    assert sum(p.numel() for p in stop.spatial.parameters()) == 106_880
    assert [sum(p.numel() for p in part.parameters()) for part in stop.temporal.values()] == [102_466] * 3
    tempme = on_paper({**B32, "kind": "tempme"}).tempme
    assert [sum(p.numel() for p in part.parameters()) for part in (tempme.vision, tempme.text)] == [294_912, 196_608]
    assert {name: tuple(p.shape) for name, p in tempme.positions.items()} == {
        "8": (12, 768),
        "9": (6, 768),
        "10": (3, 768),
    }


IN_FRAMES_32 = ", ".join(f"12x{n}→{n - 2}" for n in range(50, 34, -2))
IN_FRAMES_16 = ", ".join(f"12x{n}→{n - 10}" for n in range(197, 117, -10))
LONG = ", ".join(f"64x{n}→{n - 2}" for n in range(50, 34, -2))
TRACES = [
    ({**B32, "kind": "tempme"}, f"{IN_FRAMES_32}, 6x48→44, 3x62→56, 1x118→107, 1x107→97"),
    ({**B32, "kind": "unified"}, f"{IN_FRAMES_32}, 6x52→48, 3x66→60, 1x126→115, 1x115→105"),
    ({**B16, "kind": "tempme"}, f"{IN_FRAMES_16}, 6x141→113, 3x136→109, 1x197→158, 1x158→127"),
    ({**B16, "kind": "unified"}, f"{IN_FRAMES_16}, 6x145→117, 3x140→113, 1x205→166, 1x166→135"),
    ({**B32, "kind": "tempme", "frames": 64}, f"{LONG}, 16x96→87, 4x244→220, 1x616→555, 1x555→500"),
    ({**B32, "kind": "unified", "frames": 64}, f"{LONG}, 16x108→99, 4x256→232, 1x628→567, 1x567→512"),
    ({**B32, "kind": "stop"}, f"{', '.join(['12x50'] * 8)}, 6x104, 3x204, 1x608, 1x608"),
    (
        {**B32, "kind": "tempme", "frames": 18},
        f"{IN_FRAMES_32.replace('12x', '18x')}, 9x48→44, 3x93→84, 1x177→160, 1x160→144",
    ),
    ({**B32, "kind": "tome", "frames": 5}, ", ".join(f"5x{n}→{n - 3}" for n in range(50, 14, -3))),
]


@pytest.mark.parametrize(("model", "trace"), TRACES, ids=[f"{m['clip']} {m['kind']}" for m, _ in TRACES])
def test_traces(model: Mapping[str, Any], trace: str) -> None:
    built = on_paper(model)
    assert built.plan.trace() == trace
    if built.frames in (5, 18):
        measured(built)


def test_the_cuts_of_patch_32_would_leave_321_tokens_with_patch_16() -> None:
    cuts = {"cut_cross_pct": 30, "cut_inside_pct": 10}
    assert on_paper({**B16, "kind": "tempme", **cuts}).plan.blocks[-1].after == 321


def test_other_resolutions_and_patches() -> None:
    """Nothing is wired to 224 pixels, 12 blocks or 49 patches."""
    shape = ClipShape(336, 14, 6, 128, 4, 512, 2, 64, 2, 256, 96, 1000, 77, 999)
    named = {"frame_merge": 20, "cut_cross_pct": 40, "cut_inside_pct": 20}
    built = on_paper({"kind": "unified", "frames": 12, **named}, shape)
    asked = r"model\.frame_merge, model\.cut_inside_pct must be named for patches of 14 pixels"
    with pytest.raises(ConfigError, match=asked):
        on_paper({"kind": "unified", "cut_cross_pct": 40}, shape)
    assert [step.block for step in built.plan.joins] == [2, 3, 4]
    assert built.plan.blocks[0].tokens == 577
    assert measured(built) == planned(built)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_needs_no_numbers(kind: str) -> None:
    """What an error advises where no weights are at hand: `random:tiny` alone."""
    plan = on_paper({"clip": "random:tiny", "kind": kind}).plan
    assert [step.block for step in plan.joins] == ([1, 2, 3] if kind in ("tempme", "stop", "unified") else [])
    assert (plan.blocks[-1].after < 16 * 12 // plan.blocks[-1].clips) == (kind in ("tome", "tempme", "unified"))


# --- arithmetic


def test_percentages_are_exact() -> None:
    for total in range(1, 3001):
        for percent in (5, 10, 12, 20, 25, 30, 40):
            exact = Fraction(total * percent, 100)
            assert planning._share(total, percent) == int(exact)
            assert selected(total + 1, percent) == ceil(Fraction((total + 1) * percent, 100))


def test_floats_would_be_wrong() -> None:
    """Negative twin."""
    wrong = [n for n in range(1, 3001) if int(n * (1 - 0.9)) != planning._share(n, 10)]
    assert wrong[:2] == [10, 20]


# --- what is refused

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "product": ({**B32, "groups": {8: 2, 9: 2, 10: 2}}, "product is 8, but a video has 12 frames"),
    "no such block": ({**B32, "groups": {8: 2, 9: 2, 12: 3}}, "blocks 0 to 11"),
    "joins one": ({**B32, "groups": {8: 1, 9: 12}}, "joining 2 clips or more"),
    "unusual": ({**B32, "frames": 20}, "take 18 frames"),
    "too many": ({**B32, "kind": "tempme", "frame_merge": 7}, "block 6: 7 of 7 patches would be merged"),
    "half": ({**B32, "kind": "tempme", "frame_merge": 25}, "block 0: 25 of 49"),
    "grid": ({**B32, "spatial_block": 1}, "patches were merged before"),
    "no block": ({**B32, "spatial_block": 12}, "blocks 0 to 11"),
    "datatype": ({**B32, "words": 78}, "reads 77 tokens at most"),
    "selection": ({**B32, "select_pct": 51}, "less than or equal to 50"),
    "temporal": ({"switches": {"group": False, "temporal": True}}, "switches.temporal needs switches.group"),
    "positions": ({"switches": {"group": False, "positions": True}}, "switches.positions needs switches.group"),
    "protect": ({"kind": "tempme", "switches": {"protect": True}}, "switches.protect needs"),
    "no loss": ({"loss": {"tempme_weight": 0, "stop_weight": 0}}, "both 0"),
    "no slots": ({"kind": "tempme", "loss": {"tempme_weight": 0, "stop_weight": 1}}, "there are no slots"),
    "scale": ({"loss": {"logit_scale": "learned"}}, "needs model.train_clip=true"),
    "random": ({"clip": "random:huge"}, "random:tiny, random:b32, random:b16"),
}


@pytest.mark.parametrize(("model", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_planned_is_refused(model: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        on_paper(model)


def test_what_is_planned_otherwise_is_not_refused() -> None:
    """The counterpart of the refusals: whole numbers of clips in any blocks, a grid that was joined and not merged."""
    assert on_paper({**B32, "groups": {2: 3, 5: 4}}).plan.blocks[-1].clips == 1
    assert on_paper({**B32, "kind": "stop", "spatial_block": 9}).plan.blocks[9].spatial
    with pytest.raises(ConfigError, match="unknown; allowed are msrvtt"):
        planning.frames_words(on_paper(B32).config, "lsmdc")
    plan = make_plan(4, 9, 2, Recipe(groups={1: 4}, cut_cross_pct=25))
    assert plan.trace() == "4x10, 1x30"
    assert RANDOM["random:tiny"].patches == 16


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_can_be_built(name: str) -> None:
    preset = presets.PRESETS[name].get("model", {})
    config = configuration.build(ModelConfig, preset)
    assert configuration.build(ModelConfig, configuration.dump(config)) == config
    datatype = name if name in planning.FRAMES_WORDS else "msrvtt"
    with torch.device("meta"):
        model = UnifiedTempMeSTOPModel(config, datatype, Clip(clip_shape(config)))
    assert (model.frames, model.words) == ((8, 40) if name == "tiny" else planning.FRAMES_WORDS[datatype])
    assert model.on.lora == (name not in ("stop_paper", "clip4clip_full"))
