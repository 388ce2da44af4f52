"""Channels, units, positions, times, and grids: what every field rests on."""

from __future__ import annotations

import numpy as np
import pytest

from sensorium.data.fields import channels, places, units
from sensorium.data.fields.channels import Normal, Scalers, read_scalers
from sensorium.data.fields.grids import Wish, plan, weights
from sensorium.errors import ConfigError, DataError

LAT = np.linspace(-60.0, 60.0, 13)
LON = np.arange(0.0, 360.0, 10.0)


def test_the_channels_of_merra2_stand_where_the_encoder_wants_them() -> None:
    names = channels.SETS["merra2-160"]
    assert len(names) == len(set(names)) == 160
    assert (names[0], names[12], names[19]) == ("EFLUX", "T2M", "Z0M")
    fields = ["CLOUD", "H", "OMEGA", "PL", "QI", "QL", "QV", "T", "U", "V"]
    for v, field in enumerate(fields):
        for number, level in enumerate(channels.LEVELS):
            assert names[20 + 14 * v + number] == f"{field}_{level}"
    assert channels.STATIC_8 == ("cos_doy", "sin_doy", "cos_hod", "sin_hod", "FRACI", "FRLAND", "FROCEAN", "PHIS")
    assert all(channel.low < channel.high for channel in (*channels.MERRA2_160, *channels.CONSTANT))


def test_other_sets_are_parts_of_it_and_marked_approximate() -> None:
    for name in ("era5-wb2", "hrrr"):
        assert set(channels.SETS[name]) < set(channels.SETS["merra2-160"])
        assert name in channels.APPROXIMATE
        assert len(channels.SETS[name]) > 80
    assert channels.nearest_level("era5-wb2", 48) == 400
    assert channels.names_of(["SST", "T2M"]) == ("SST", "T2M")
    with pytest.raises(ConfigError, match="no set of channels 'merra'; there are merra2-160, era5-wb2, hrrr"):
        channels.names_of("merra")
    with pytest.raises(ConfigError, match="'T2M' is named twice"):
        channels.names_of(["T2M", "T2M"])


def test_scalers_survive_json_are_found_by_name_and_bounded() -> None:
    field = Normal(("A", "B", "C"), (1.0, 2.0, 3.0), (0.0, 2.0, 1e9))
    scalers = Scalers(field, Normal(("X",), (0.0,), (1.0,)))
    assert read_scalers(scalers.plain()) == scalers
    mean, std = field.of(["C", "A"])
    assert mean.tolist() == [3.0, 1.0]
    assert std.tolist() == pytest.approx([1e4, 1e-4])
    with pytest.raises(DataError, match="no mean and standard deviation for Z"):
        field.of(["A", "Z"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "expected {"),
        ({"field": {"names": ["A"], "mean": [0]}}, "lists names, mean and std"),
        ({"field": {"names": ["A"], "mean": ["0"], "std": [1]}}, "expected numbers"),
        ({"field": {"names": ["A"], "mean": [True], "std": [1]}}, "expected numbers"),
        ({"field": {"names": ["A"], "mean": [0, 1], "std": [1]}}, "1 channels, 2 means"),
        ({"field": {"names": ["A"], "mean": [0], "std": [-1]}}, "A are no sensible numbers"),
    ],
)
def test_wrong_scalers_are_refused(content: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_scalers(content)


@pytest.mark.parametrize(
    ("unit", "wanted", "value", "result"),
    [
        ("Deg C", "K", 20, 293.15),
        ("degF", "K", 212, 373.15),
        ("MB", "Pa", 1013.25, 101325),
        ("m**2 s**-2", "m", 9806.65, 1000),
        ("G/KG", "kg kg-1", 5, 0.005),
        ("M/S", "m s-1", 3, 3),
        ("%", "1", 30, 0.3),
        ("knots", "m s-1", 3600 / 1852, 1),
    ],
)
def test_units_become_those_of_the_channel(unit: str, wanted: str, value: float, result: float) -> None:
    factor, offset = units.factors(unit, wanted)
    assert value * factor + offset == pytest.approx(result)


def test_sums_need_their_seconds_and_unknown_units_are_refused() -> None:
    assert units.factors("J m**-2", "W m-2", 3600) == (1 / 3600, 0)
    with pytest.raises(DataError, match="say over how many seconds"):
        units.factors("J m-2", "W m-2")
    with pytest.raises(DataError, match="unit 'furlong'; expected K, degc, degf"):
        units.factors("furlong", "K")


def test_numbers_are_guessed_to_be_in_another_unit() -> None:
    by_name = {channel.name: channel for channel in channels.MERRA2_160}
    assert units.guess(by_name["T2M"], 12, 31) == "looks like °C, K expected"
    assert units.guess(by_name["PS"], 900, 1030) == "looks like hPa, Pa expected"
    assert units.guess(by_name["SWGNT"], 0, 3e6) == "looks like J m-2 summed over an hour, W m-2 expected"
    assert units.guess(by_name["T2M"], 1e6, 2e6) == "expected 165 to 345 K"


# --- positions and times ---


def test_positions_rise_and_go_on_over_the_date_line() -> None:
    lat, falls = places.latitudes([20, 10], 3)
    assert lat.tolist() == [10, 15, 20]
    assert falls
    assert places.longitudes([170, -160], 4).tolist() == [170, 180, 190, 200]
    assert places.longitudes([170, 180, -170, -160], 4).tolist() == [170, 180, 190, 200]
    lat, lon = places.assumed(64, 64)
    assert (lat.mean(), lon.mean()) == (0, 0)
    assert (np.diff(lat)[0], np.diff(lon)[0]) == (0.5, 0.625)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: places.latitudes([1, 2, 3], 4), "lat: 3 numbers for 4"),
        (lambda: places.latitudes([0, 10, 5], 3), "neither rises nor falls"),
        (lambda: places.latitudes([0, 91], 2), "91 is no latitude"),
        (lambda: places.longitudes([10, 5, 7], 3), "does not rise from west to east"),
        (lambda: places.longitudes([0, 400], 4), "400 degrees wide"),
        (lambda: places.longitudes([0, float("nan")], 4), "no number"),
        (lambda: places.parse_time("yesterday"), "'yesterday' is no time"),
        (lambda: places.parse_time("2020-02-30T00:00Z"), "is no time"),
    ],
)
def test_wrong_positions_and_times_are_named(call: object, reason: str) -> None:
    assert callable(call)
    with pytest.raises(DataError, match=reason):
        call()


def test_the_code_of_a_time() -> None:
    code = places.time_code(places.parse_time("2020-01-01T06:00:00Z"))
    angle = 2 * np.pi / 366
    assert code.tolist() == pytest.approx([np.cos(angle), np.sin(angle), 0, 1], abs=1e-6)
    assert places.time_code(None).tolist() == [0, 0, 0, 0]
    assert places.time_text(places.parse_time("2020-01-31")) == "2020-01-31T00:00:00Z"


# --- grids ---


def a_map(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Something that is different everywhere, and periodic."""
    return np.asarray(lat[:, None] + 10 * np.cos(np.deg2rad(lon)) + 3 * np.sin(2 * np.deg2rad(lon)))


def test_either_way_to_count_longitudes_gives_the_same_map() -> None:
    other = (LON + 180) % 360 - 180
    order = np.argsort(other)
    wish = Wish((-30, -40, 50, 40), (6, 8))
    one = plan(LAT, LON, wish)
    two = plan(LAT[::-1], other[order], wish)
    values = a_map(LAT, LON)
    assert np.array_equal(one.bring(values), two.bring(values[::-1][:, order]))
    assert np.array_equal(one.lon, two.lon)
    assert not np.array_equal(one.bring(values), two.bring(values))  # the check is no tautology


def test_a_box_over_the_date_line_stays_continuous() -> None:
    grid = plan(LAT, LON, Wish((160, -20, -150, 20)))
    assert grid.lon.tolist() == [160, 170, 180, 190, 200, 210]
    assert grid.bring(a_map(LAT, LON)) == pytest.approx(a_map(grid.lat, grid.lon))


def test_the_whole_globe_begins_in_the_west_and_has_even_sides() -> None:
    grid = plan(np.linspace(-90, 90, 19), LON, Wish())
    assert (grid.lat[0], grid.lat[-1], len(grid.lat)) == (-90, 80, 18)
    assert (grid.lon[0], grid.lon[-1]) == (-180, 170)
    assert grid.notes == ("the northernmost row (90 N) is left out: sides must be even",)


@pytest.mark.parametrize("size", [(4, 6), (26, 50), (5, 7), (13, 36)])
def test_regridding_keeps_a_constant_exactly(size: tuple[int, int]) -> None:
    grid = plan(LAT, LON, Wish(None, size))
    found = grid.bring(np.full((13, 36), 101_325.0)).astype(np.float32)
    assert found.shape == size
    assert (found == 101_325).all()


def test_regridding_down_keeps_the_mean_by_area() -> None:
    values = a_map(LAT, LON) + LAT[:, None] ** 2
    grid = plan(LAT, LON, Wish(None, (4, 8)))
    borders = np.sin(np.deg2rad(np.linspace(-65, 65, 14)))
    area = np.diff(borders)
    new = np.diff(np.sin(np.deg2rad(np.linspace(-65, 65, 5))))
    before = (values.mean(1) * area).sum() / area.sum()
    after = (grid.bring(values).mean(1) * new).sum() / new.sum()
    assert after == pytest.approx(before, abs=1e-6)
    assert grid.bring(values).mean() != pytest.approx(before, abs=1e-6)  # without area it is another number


def test_regridding_up_is_linear_between_centres() -> None:
    found, middle = weights(np.array([0.0, 10.0, 20.0]), 6, spherical=False)
    inside = (middle > 0) & (middle < 20)
    assert (found @ np.array([0.0, 10.0, 20.0]))[inside] == pytest.approx(middle[inside])


def test_what_is_not_measured_stays_out_of_means() -> None:
    values = a_map(LAT, LON)
    values[:6] = np.nan
    found = plan(LAT, LON, Wish(None, (4, 8))).bring(values)
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[2:]).all()


def test_points_of_a_projection_are_averaged_into_cells() -> None:
    lat, lon = np.meshgrid(np.linspace(30, 40, 50), np.linspace(-100, -90, 60), indexing="ij")
    twisted = lon + 0.1 * np.sin(lat)
    grid = plan(lat, twisted, Wish((-99, 31, -91, 39), (4, 4)))
    assert grid.bring(lat) == pytest.approx(np.repeat(grid.lat[:, None], 4, 1), abs=0.15)  # two points a degree
    with pytest.raises(DataError, match="projected grid"):
        plan(lat, twisted, Wish())


@pytest.mark.parametrize(
    ("lat", "lon", "box", "reason"),
    [
        (np.array([0.0, 2, 1]), LON, None, "neither rise nor fall"),
        (LAT, np.array([0.0, 180, 360]), None, "a longitude is given twice"),
        (LAT, LON, (0, 70, 10, 80), "nothing of the data lies within"),
        (LAT, LON, (0, 0, 5, 5), "fewer than 2 x 2"),
        (LAT * 2, LON, None, "no degrees"),
    ],
)
def test_grids_that_cannot_be_are_refused(lat: np.ndarray, lon: np.ndarray, box: tuple | None, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        plan(lat, lon, Wish(box))


def test_a_box_must_be_one() -> None:
    with pytest.raises(ConfigError, match="west,south,east,north"):
        Wish((0, 50, 10, 40))
