"""Prithvi's encoder against the package's own, its fp32 islands, units and windows; the small ViT; the resampler."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from climate_rows import make_batch, make_field, make_llm, settings
from prithvi_files import BLOCKS, HEADS, MLP, WIDTH, needs_prithvi, whole
from torch import Tensor, nn

from sensorium import families
from sensorium.engine.settings import resolve
from sensorium.errors import ConfigError, DataError
from sensorium.families.climate_text.config import ModelConfig
from sensorium.families.climate_text.encoders import FieldFacts, Perceiver, open_encoder, own_channels, trained_encoder
from sensorium.families.climate_text.grid_vit import GridVit
from sensorium.families.climate_text.model import ClimateTextFusion
from sensorium.families.climate_text.prithvi import (
    PrithviEncoder,
    PrithviShape,
    parameter_count,
    to_map,
    to_units,
)
from sensorium.families.climate_text.tokens import (
    mask_unit,
    patch_code,
    place_code,
    pool_windows,
    token_window,
    window_centres,
    within_code,
)

SHAPE = PrithviShape(WIDTH, BLOCKS, HEADS, MLP)
FACTS = FieldFacts(160, 2, 4)
SMALL = {"width": WIDTH, "blocks": BLOCKS, "heads": HEADS, "mlp": MLP}


def prithvi(**changes: object) -> PrithviEncoder:
    torch.manual_seed(0)
    return PrithviEncoder(SHAPE, ModelConfig.model_validate(changes)).eval()


def like(model: nn.Module, **changes: object) -> PrithviEncoder:
    """Our encoder with the weights and scalers of a whole model of the package."""
    state = model.state_dict()
    last = slice(3, 7)  # of 11: three of positions, four of day and hour, four fields
    day_hour = tuple(tuple(state[f"static_input_scalers_{kind}"].flatten()[last].tolist()) for kind in ("mu", "sigma"))
    encoder = PrithviEncoder(SHAPE, ModelConfig.model_validate(changes), day_hour=day_hour).eval()  # type: ignore[arg-type]
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})
    return encoder


def theirs(model: nn.Module, batch: Mapping[str, Tensor], *, in_order: bool) -> tuple[Tensor, Tensor]:
    """What goes into the package's encoder and what comes out of it, ``[B, G, L, D]``, by the package's own forward."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.encoder.register_forward_hook(lambda _, given, output: seen.append((given[0], output)))
    if in_order:
        rows = len(batch["field"])
        count = int(model._nglobal_mu)
        order = torch.arange(count).expand(rows, -1)
        model.generate_mask = lambda _: (torch.empty(rows, 0, dtype=torch.long), order)
    mean, sigma = (getattr(model, f"input_scalers_{kind}") for kind in ("mu", "sigma"))
    still_mean, still_sigma = (getattr(model, f"static_input_scalers_{kind}")[:, 7:] for kind in ("mu", "sigma"))
    height, width = batch["field"].shape[-2:]
    lat = torch.deg2rad(batch["lat"])[:, None, :, None].expand(-1, 1, height, width)
    lon = torch.deg2rad(batch["lon"])[:, None, None, :].expand(-1, 1, height, width)
    clock = batch["day_hour"][:, :, None, None].expand(-1, -1, height, width)
    raw = {
        "x": batch["field"] * sigma + mean,
        "y": batch["field"][:, 0],
        "static": torch.cat([lat, lon, clock, batch["static"] * still_sigma + still_mean], dim=1),
        "climate": batch["climatology"] * sigma[:, 0] + mean[:, 0],
        "input_time": batch["input_time"],
        "lead_time": batch["lead_time"],
    }
    with pytest.raises(AttributeError, match="decoder"):  # it has none
        model(raw)
    handle.remove()
    return seen[0]


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return make_field()


# --- Prithvi


@needs_prithvi
@torch.no_grad()
@pytest.mark.parametrize(("sides", "unit"), [((64, 64), (32, 32)), ((60, 64), (30, 32)), ((60, 96), (30, 32))])
@pytest.mark.parametrize("shifting", [False, True])
def test_our_chain_is_the_encoder_of_the_package(sides: tuple[int, int], unit: tuple[int, int], shifting: bool) -> None:
    batch = make_field(sides=sides)
    model = whole(sides, unit, encoder_shifting=shifting)
    expected = theirs(model, batch, in_order=True)[1]
    encoder = like(model, encoder_shifting=shifting)
    found = encoder.chain(batch, batch["field"], unit)
    local, units = (unit[0] // 2, unit[1] // 2), (sides[0] // unit[0], sides[1] // unit[1])
    torch.testing.assert_close(to_units(found, local), expected, rtol=0, atol=1e-5)  # normalised twice, once back
    assert torch.equal(to_map(to_units(found, local), units, local), found)
    if shifting:
        assert not torch.allclose(like(model).chain(batch, batch["field"], unit), found, atol=1e-3)


@needs_prithvi
@torch.no_grad()
def test_the_packages_own_forward_shuffles_and_ours_does_not(batch: dict[str, Tensor]) -> None:
    model = whole()
    assert not torch.equal(theirs(model, batch, in_order=False)[1], theirs(model, batch, in_order=False)[1])
    encoder = like(model)
    first, second = encoder.encode(batch)[0], encoder.encode(batch)[0]
    assert torch.equal(first, second)
    for row in range(2):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        torch.testing.assert_close(encoder.encode(alone)[0][0], first[row], rtol=0, atol=1e-5)


@needs_prithvi
@torch.no_grad()
def test_codes_are_those_of_the_package(batch: dict[str, Tensor]) -> None:
    model = whole()
    lat = torch.deg2rad(batch["lat"])[:, None, :, None].expand(-1, 1, -1, 64)
    lon = torch.deg2rad(batch["lon"])[:, None, None, :].expand(-1, 1, 64, -1)
    expected = model.fourier_pos_encoding(torch.cat([lat, lon], dim=1))
    torch.testing.assert_close(patch_code(batch["lat"], batch["lon"], 2, WIDTH), expected, rtol=0, atol=1e-5)
    time = model.time_encoding(batch["input_time"], batch["lead_time"])[:, 0, 0]
    torch.testing.assert_close(like(model).time_code(batch["input_time"], batch["lead_time"]), time)
    wide = patch_code(batch["lat"], batch["lon"], 2, 2560)  # 640 times the angle
    rad = torch.deg2rad(batch["lat"].double()).unflatten(1, (-1, 2)).mean(-1)
    exact = torch.sin(rad[:, None, :] * torch.arange(1, 641)[None, :, None])
    torch.testing.assert_close(wide[:, :640, :, 0].double(), exact, rtol=0, atol=3e-4)


@needs_prithvi
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_of_rounded_weights_are_rounded_once(batch: dict[str, Tensor], dtype: torch.dtype) -> None:
    encoder = prithvi()
    for part in (encoder.patch_embedding, encoder.patch_embedding_static):
        nn.init.zeros_(part.proj.weight)
        nn.init.zeros_(part.proj.bias)
    batch["input_time"] += 42  # two days: hours times a rate are many turns
    encoder.to(dtype)
    assert not list(encoder.buffers())  # a float buffer would be rounded with the weights
    seen: list[Tensor] = []
    encoder.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    encoder.encode(batch)
    encoder.float().encode(batch)  # the same rounded weights
    assert seen[0].dtype == dtype
    once = 2 * torch.finfo(dtype).eps  # two numbers within -1..1, each rounded once, and their sum
    assert (seen[0].float() - seen[1]).abs().max() <= once
    angle = torch.deg2rad(torch.linspace(-90, 90, 64))
    late = torch.sin(angle.to(dtype)[:, None] * torch.arange(1, 641, dtype=dtype))
    exact = torch.sin(angle[:, None] * torch.arange(1, 641))
    assert (late.float() - exact).abs().mean() > 0.02  # what rounding before the sine does


@needs_prithvi
@torch.no_grad()
def test_half_precision_stays_finite_and_near(batch: dict[str, Tensor]) -> None:
    encoder = prithvi()
    expected = encoder.encode(batch)[0]
    for dtype, tolerance in ((torch.float16, 0.02), (torch.bfloat16, 0.1)):
        found = prithvi().to(dtype).encode(batch)[0]
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoder.encode(batch)[0].float(), expected, rtol=0, atol=0.1)


@needs_prithvi
def test_every_patch_and_every_input_counts() -> None:
    batch = make_field(rows=1, sides=(60, 96))
    encoder = prithvi()
    field = batch["field"].requires_grad_()
    before = encoder.encode(batch)[0]
    assert before.shape == (1, 240, WIDTH)  # 30 x 48 patches, windows of 3 x 2
    before.square().sum().backward()
    assert field.grad is not None
    assert (field.grad[0].abs().amax(dim=(0, 1)) > 0).all()
    with torch.no_grad():
        for row, column in ((0, 0), (0, 95), (59, 0), (59, 95), (29, 47), (30, 48)):
            other = field.detach().clone()
            other[..., row, column] += 5
            moved = (encoder.encode({**batch, "field": other})[0] - before).abs().amax(dim=(0, 2))
            assert int(moved.argmax()) == row // 6 * 24 + column // 4  # its own window most of all
        for name in ("static", "climatology", "lat", "lon", "day_hour", "input_time", "lead_time"):
            changed = {**batch, name: batch[name] + 0.3}
            assert not torch.allclose(encoder.encode(changed)[0], before, atol=1e-4), name


@needs_prithvi
@torch.no_grad()
def test_more_times_are_pairs_side_by_side() -> None:
    batch = make_field(times=3)
    encoder = prithvi(max_climate_tokens=512)
    tokens, lat, lon = encoder.encode(batch)
    assert tokens.shape == (2, 512, WIDTH)
    for first in range(2):
        small = prithvi(max_climate_tokens=256).encode({**batch, "field": batch["field"][:, first : first + 2]})
        for found, expected in zip((tokens, lat, lon), small, strict=True):
            assert torch.equal(found[:, 256 * first : 256 * (first + 1)], expected)


@needs_prithvi
def test_wrong_shapes_are_told(batch: dict[str, Tensor]) -> None:
    encoder = prithvi()
    with pytest.raises(
        DataError, match=r"field has shape \[2, 1, 160, 64, 64\]; this encoder reads \[B, T, 160, H, W\]"
    ):
        encoder.encode({**batch, "field": batch["field"][:, :1]})
    with pytest.raises(DataError, match=r"static has shape \[2, 3, 64, 64\]; this field needs \[2, 4, 64, 64\]"):
        encoder.encode({**batch, "static": batch["static"][:, :3]})
    odd = make_field(sides=(61, 64))
    with pytest.raises(DataError, match="61 x 64 points: both sides must be multiples of the patch, 2"):
        encoder.encode(odd)


@needs_prithvi
def test_a_trained_encoder_may_compute_its_layers_twice(batch: dict[str, Tensor]) -> None:
    found = {}
    model = {"random_init": True, "prithvi": SMALL, "freeze_encoder": False}
    for name, on in (("kept", False), ("twice", True)):
        encoder = open_encoder(ModelConfig(**model, gradient_checkpointing=on), FACTS)
        assert isinstance(encoder, PrithviEncoder)
        calls = [0] * SHAPE.layers
        for number, layer in enumerate(encoder.encoder.lgl_block.transformers):
            count = calls  # bound here: each model counts for itself
            layer.ff.register_forward_pre_hook(lambda *_, n=number, count=count: count.__setitem__(n, count[n] + 1))
        encoder.encode(batch)[0].square().mean().backward()
        assert calls == [2 if on else 1] * SHAPE.layers
        found[name] = {n: p.grad for n, p in encoder.named_parameters()}
    for name, gradient in found["kept"].items():
        assert gradient is not None, name
        torch.testing.assert_close(found["twice"][name], gradient, rtol=0, atol=1e-6)


@needs_prithvi
def test_the_published_encoder_has_its_known_size() -> None:
    assert sum(p.numel() for p in prithvi().parameters()) == parameter_count(SHAPE)
    full = PrithviShape(2560, 12, 16, 4)
    assert parameter_count(full) == pytest.approx(1.972e9, rel=1e-3)
    with torch.device("meta"):
        built = PrithviEncoder(full, ModelConfig())
    assert sum(p.numel() for p in built.parameters()) == parameter_count(full)
    assert sum(p.numel() for p in built.encoder.parameters()) == pytest.approx(1.967e9, rel=1e-3)


@needs_prithvi
def test_identity_follows_weights_and_settings() -> None:
    same = {prithvi().identity, prithvi().identity}
    other = prithvi()
    with torch.no_grad():
        other.encoder.lgl_block.transformers[0].ff[1].net[0].bias[3] += 1e-6
    changed = [
        other,
        prithvi(encoder_shifting=True),
        prithvi(mask_unit=(16, 16)),
        prithvi(token_window=(4, 4)),
        prithvi(max_climate_tokens=64),
        prithvi().to(torch.bfloat16),
    ]
    assert len(same) == 1
    assert len(same | {encoder.identity for encoder in changed}) == 7


@needs_prithvi
def test_a_frozen_encoder_builds_no_graph_and_stays(batch: dict[str, Tensor]) -> None:
    model = ModelConfig(
        random_init=True, prithvi=SMALL, num_fusion_layers=2, fusion_heads=4, gradient_checkpointing=False
    )
    fusion = ClimateTextFusion(model, FACTS, llm=make_llm()).train()
    assert not fusion.encoder.training
    seen: list[bool] = []
    fusion.encoder.encoder.register_forward_hook(lambda _, __, output: seen.append(output.requires_grad))
    text = {name: value[:2] for name, value in make_batch().items() if "token" not in name}
    before = fusion.encoder.identity
    fusion({**text, **batch}).losses().mean().backward()
    assert seen == [False]
    assert all(p.grad is None for p in fusion.encoder.parameters())
    assert fusion.encoder.identity == before
    assert not any(name.startswith("encoder.") for name, p in fusion.named_parameters() if p.requires_grad)
    assert trained_encoder(model) is None
    ready = dict(zip(("climate_tokens", "token_lat", "token_lon"), fusion.encoder.encode(batch), strict=True))
    stored = ClimateTextFusion(model, FieldFacts(160, 2, 4, WIDTH), llm=fusion.llm)
    assert stored.encoder is None
    stored.load_state_dict({n: t for n, t in fusion.state_dict().items() if not n.startswith("encoder.")})
    with torch.no_grad():
        live = fusion.eval().logits({**text, **batch})
        cached = stored.eval().logits({**text, **ready, "field_given": batch["field_given"]})
        assert torch.equal(live, cached)
        with pytest.raises(DataError, match="built for tokens"):
            stored.logits({**text, **batch})
        stored.attach_encoder()
        assert not stored.encoder.training
        assert torch.equal(stored.logits({**text, **batch}), live)  # random weights are the same ones always


def test_an_encoder_must_be_named() -> None:
    assert own_channels(settings(), None) is None
    names, static = own_channels(ModelConfig(), None) or ((), ())
    assert (len(names), names[12], names[20], names[159], len(static)) == (160, "T2M", "CLOUD_34", "V_72", 4)
    with pytest.raises(ConfigError, match=r"model.encoder_path is missing: the .pt of Prithvi WxC"):
        open_encoder(ModelConfig(), FACTS)
    with pytest.raises(ConfigError, match=r"nowhere.pt': no such file or folder. Give the .pt"):
        open_encoder(ModelConfig(encoder_path="nowhere.pt"), FACTS)


# --- units, windows, codes


def test_units_are_the_divisors_nearest_to_the_native_ones() -> None:
    assert mask_unit(64, 64, 2) == (32, 32)
    assert mask_unit(60, 64, 2) == (30, 32)
    assert mask_unit(360, 576, 2) == (30, 32)
    assert mask_unit(12, 16, 2) == (12, 16)
    assert mask_unit(64, 64, 2, (16, 8)) == (16, 8)
    with pytest.raises(ConfigError, match=r"model.mask_unit \[24, 32\]: must divide the grid of 64 x 64"):
        mask_unit(64, 64, 2, (24, 32))
    with pytest.raises(DataError, match="a grid of 361 x 576"):
        mask_unit(361, 576, 2)


def test_windows_leave_as_many_tokens_as_may_be() -> None:
    assert token_window((32, 32), (16, 16), 256) == (2, 2)
    assert token_window((180, 288), (15, 16), 256) == (15, 16)  # one token a unit, 216 of them
    assert token_window((180, 288), (15, 16), 60_000) == (1, 1)
    assert token_window((32, 32), (16, 16), 256, (4, 8)) == (4, 8)
    assert token_window((32, 32), (16, 16), 256, fields=2) == (2, 4)
    with pytest.raises(
        ConfigError, match="one token for each unit of 15 x 16 patches makes 216; raise it to 216 or more"
    ):
        token_window((180, 288), (15, 16), 215)
    with pytest.raises(ConfigError, match=r"token_window \[3, 2\]: must divide the unit of 16 x 16"):
        token_window((32, 32), (16, 16), 256, (3, 2))
    with pytest.raises(
        ConfigError, match=r"token_window \[1, 2\] leaves 512 tokens, and model.max_climate_tokens is 256"
    ):
        token_window((32, 32), (16, 16), 256, (1, 2))


def test_the_preset_of_the_globe() -> None:
    """The grid of MERRA-2 in the published encoder's own units, a token each; a part of a map is refused."""
    model = resolve(families.load("climate_text"), "llama3_8b_global").model
    assert (model.llm, model.climate_encoder) == ("meta-llama/Meta-Llama-3-8B", "prithvi")
    unit = mask_unit(360, 576, 2, model.mask_unit)
    window = token_window((180, 288), (unit[0] // 2, unit[1] // 2), model.max_climate_tokens, model.token_window)
    assert unit == (2 * window[0], 2 * window[1]) == mask_unit(360, 576, 2)
    assert (180 // window[0]) * (288 // window[1]) == model.max_climate_tokens == 216
    with pytest.raises(ConfigError, match="must divide the grid of 64 x 64 points"):
        mask_unit(64, 64, 2, model.mask_unit)


def test_windows_are_means_with_their_centres() -> None:
    map_BDhw = torch.arange(24.0).view(1, 1, 4, 6)
    tokens = pool_windows(map_BDhw, (2, 3))
    assert tokens[0, :, 0].tolist() == [4.0, 7.0, 16.0, 19.0]
    lat, lon = window_centres(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.arange(176.0, 188.0, 2)[None], (2, 3))
    assert lat.tolist() == [[0.5, 0.5, 2.5, 2.5]]
    assert lon.tolist() == [[178.0, 184.0, 178.0, 184.0]]  # over the date line
    assert pool_windows(map_BDhw.bfloat16() + 256, (4, 6)).item() == 268  # summed in float32


def test_places_are_told_apart_even_in_half_precision() -> None:
    lat, lon = torch.tensor([[10.0, 10.0, 12.0]]), torch.tensor([[170.0, -190.0, 170.0]])
    code = place_code(lat.bfloat16(), lon)
    assert code.dtype == torch.float32
    torch.testing.assert_close(code[0, 0], code[0, 1], rtol=0, atol=2e-4)  # the same meridian
    assert (code[0, 0] - code[0, 2]).abs().max() > 0.1


# --- the small ViT


def vit(**changes: object) -> GridVit:
    torch.manual_seed(0)
    return GridVit(settings(grid_vit={"width": 32, "depth": 2, "heads": 4, **changes}), 3, 2, 1)


def small_field(**changes: object) -> dict[str, Tensor]:
    return make_field(channels=3, static=1, **changes)  # type: ignore[arg-type]


def test_the_place_in_a_field_is_told_whatever_its_degrees() -> None:
    lat, lon = torch.tensor([[-10.0, -10.0, 30.0, 30.0]]), torch.tensor([[170.0, 200.0, 170.0, 200.0]])
    code = within_code(lat, lon)
    torch.testing.assert_close(within_code(lat * 2 + 7, lon / 3), code)
    assert torch.cdist(code[0], code[0]).fill_diagonal_(9).min() > 0.9
    torch.testing.assert_close(code[0, 0, :6], torch.zeros(6))  # sines of the south-west corner
    single = within_code(torch.full((2, 1), 50.0), torch.full((2, 1), 8.0))
    assert single.isfinite().all()


@pytest.mark.parametrize(("sides", "patch", "count"), [((64, 64), 8, 64), ((60, 64), 4, 240), ((32, 32), 8, 16)])
def test_the_small_vit_reads_any_grid(sides: tuple[int, int], patch: int, count: int) -> None:
    batch = small_field(sides=sides)
    encoder = vit(patch=patch)
    tokens, lat, lon = encoder.encode(batch)
    assert tokens.shape == (2, count, 32)
    assert lat.shape == lon.shape == (2, count)
    for name in ("field", "static", "lat", "lon", "day_hour", "input_time", "lead_time"):
        assert not torch.allclose(encoder.encode({**batch, name: batch[name] + 0.3})[0], tokens, atol=1e-4), name
    tokens.square().mean().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_the_small_vit_names_patches_that_fit() -> None:
    with pytest.raises(ConfigError, match=r"patch 8 does not divide the grid of 60 x 64 points; take one of 1, 2, 4$"):
        vit().encode(small_field(sides=(60, 64)))
    with pytest.raises(DataError, match=r"this encoder reads \[B, 2, 3, H, W\] and \[B, 1, H, W\]"):
        vit().encode(make_field())


def test_the_small_vit_is_trained_and_may_be_checkpointed() -> None:
    batch, found = small_field(), []
    for on in (False, True):
        model = settings(grid_vit={"width": 32, "depth": 2, "heads": 4}, gradient_checkpointing=on)
        torch.manual_seed(0)
        encoder = open_encoder(model, FieldFacts(3, 2, 1))
        assert isinstance(encoder, GridVit)
        assert len(encoder.checkpointed) == 2 * on
        encoder.encode(batch)[0].square().mean().backward()
        found.append([p.grad for p in encoder.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_queries_read_only_tokens_that_count() -> None:
    torch.manual_seed(0)
    perceiver = Perceiver(16, 4, 3, 2)
    tokens, mask = torch.randn(2, 5, 16), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = perceiver(tokens, mask)
    assert found.shape == (2, 3, 16)
    torch.testing.assert_close(perceiver(tokens[1:, :3], mask[1:, :3])[0], found[1])
    assert torch.isfinite(perceiver(tokens, torch.zeros_like(mask))).all()
