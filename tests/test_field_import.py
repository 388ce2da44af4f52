"""Import of gridded files: formats, units, orders, what is not measured, splits without leaks, texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from sensorium.cli import app
from sensorium.config import build
from sensorium.data.fields import composing, cubes, grammar, importing, joining, opening, splits, tree, usual, varmap
from sensorium.data.fields.grids import Wish
from sensorium.data.fields.validation import Rules, validate
from sensorium.errors import ConfigError, DataError

xarray = pytest.importorskip("xarray", reason="the extra `climate` is not installed")

LAT, LON = np.linspace(-45.0, 45.0, 10), np.arange(0.0, 360.0, 30.0)
MAP = {"channels": {"T2M": {"source": "t2m"}, "U_48": {"source": "u", "level": 400}}}


def times(count: int, hours: float = 6, start: str = "2020-01-01") -> np.ndarray:
    steps = np.arange(count) * np.timedelta64(round(hours * 3600), "s")
    return np.asarray(np.datetime64(start, "s") + steps)


def dataset(count: int = 4, hours: float = 6, seed: int = 0) -> Any:
    """Temperature in degrees Celsius, and wind on two levels."""
    draw = np.random.default_rng(seed)
    t2m = 15 + 5 * draw.standard_normal((count, 10, 12)).astype(np.float32)
    u = 10 * draw.standard_normal((count, 2, 10, 12)).astype(np.float32)
    return xarray.Dataset(
        {
            "t2m": (("time", "lat", "lon"), t2m, {"units": "degC"}),
            "u": (("time", "level", "lat", "lon"), u, {"units": "m s**-1"}),
        },
        {
            "time": ("time", times(count, hours)),
            "level": ("level", [400.0, 850.0]),
            "lat": ("lat", LAT, {"units": "degrees_north"}),
            "lon": ("lon", LON, {"units": "degrees_east"}),
        },
    )


def write_map(folder: Path, content: Mapping[str, Any] = MAP) -> str:
    path = folder / "map.yaml"
    path.write_text(yaml.safe_dump(dict(content)))
    return str(path)


def gather(path: Path, content: Mapping[str, Any] = MAP, wish: Wish | None = None) -> cubes.Cube:
    return cubes.gather([path], build(varmap.VariableMap, content), wish or Wish(), {})


@pytest.fixture
def netcdf(tmp_path: Path) -> Path:
    pytest.importorskip("h5netcdf")
    dataset().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    return tmp_path / "a.nc"


def expected() -> np.ndarray:
    """``[T, C, H, W]`` from west to east, beginning at 180 W."""
    data = dataset()
    both = np.stack([data.t2m.values + 273.15, data.u.values[:, 0]], 1)
    return np.asarray(np.roll(both, 6, -1))


def whole(cube: cubes.Cube) -> np.ndarray:
    return np.stack([cube.read(number) for number in range(len(cube.times))])


# --- formats ---


def write_zarr(path: Path) -> None:
    pytest.importorskip("zarr")
    dataset().to_zarr(path, consolidated=False, zarr_format=2)


def write_zarr_whole(path: Path) -> None:
    pytest.importorskip("zarr")
    dataset().to_zarr(path, consolidated=True, zarr_format=2)


def write_npz(path: Path) -> None:
    data = dataset()
    arrays = {"t2m": data.t2m.values + 273.15, "u": data.u.values, "lat": LAT, "lon": LON, "level": [400.0, 850.0]}
    np.savez(path, time=[str(one) for one in times(4)], **arrays)


def write_pt(path: Path) -> None:
    data = dataset()
    tensors = {"t2m": torch.from_numpy(data.t2m.values + 273.15), "u": torch.from_numpy(data.u.values)}
    axes = {"lat": torch.from_numpy(LAT), "lon": torch.from_numpy(LON), "level": torch.tensor([400.0, 850.0])}
    torch.save({**tensors, **axes, "time": [str(one) for one in times(4)]}, path)


def write_classic(path: Path) -> None:
    pytest.importorskip("netCDF4")
    dataset().to_netcdf(path, engine="netcdf4", format="NETCDF3_CLASSIC")


def write_grib(path: Path) -> None:
    pytest.importorskip("cfgrib", reason="cfgrib is not installed")
    codes = pytest.importorskip("eccodes")
    data = dataset()
    with path.open("wb") as file:
        for step, time in enumerate(times(4)):
            stamp = str(time)
            for name, values, where in (
                ("2t", data.t2m.values[step] + 273.15, {"typeOfLevel": "heightAboveGround", "level": 2}),
                ("u", data.u.values[step, 0], {"typeOfLevel": "isobaricInhPa", "level": 400}),
            ):
                message = codes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
                keys = {
                    "Ni": 12,
                    "Nj": 10,
                    "latitudeOfFirstGridPointInDegrees": 45.0,
                    "latitudeOfLastGridPointInDegrees": -45.0,
                    "longitudeOfFirstGridPointInDegrees": 0.0,
                    "longitudeOfLastGridPointInDegrees": 330.0,
                    "iDirectionIncrementInDegrees": 30.0,
                    "jDirectionIncrementInDegrees": 10.0,
                    "dataDate": int(stamp[:10].replace("-", "")),
                    "dataTime": int(stamp[11:13]) * 100,
                    "shortName": name,
                    **where,
                    "bitsPerValue": 24,
                }
                for key, value in keys.items():
                    codes.codes_set(message, key, value)
                codes.codes_set_values(message, values[::-1].astype(float).ravel())
                codes.codes_write(message, file)
                codes.codes_release(message)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.zarr", write_zarr),
        ("b.zarr", write_zarr_whole),
        ("a.npz", write_npz),
        ("a.pt", write_pt),
        ("a.nc", write_classic),
        ("a.grib2", write_grib),
    ],
)
def test_every_format_of_one_field_gives_the_same(tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / name)
    content = json.loads(json.dumps(MAP))
    if name.endswith((".npz", ".pt")):  # arrays have no units
        content["channels"]["T2M"]["unit"] = "K"
        content["channels"]["U_48"]["unit"] = "m s-1"
    if name.endswith(".grib2"):
        content["channels"]["T2M"]["filter_by_keys"] = {"typeOfLevel": "heightAboveGround"}
        content["channels"]["U_48"] = {"source": "u", "filter_by_keys": {"typeOfLevel": "isobaricInhPa"}}
    cube = gather(tmp_path / name, content)
    slack = 1e-4 if name.endswith(".grib2") else 1e-6  # GRIB packs into 24 bits
    assert whole(cube) == pytest.approx(expected(), rel=slack, abs=slack)
    assert cube.times.tolist() == times(4).tolist()


def test_netcdf_becomes_channels_in_their_units(netcdf: Path) -> None:
    cube = gather(netcdf)
    assert cube.names == ("T2M", "U_48")
    assert np.array_equal(cube.lat, LAT)
    assert (cube.lon[0], cube.lon[-1]) == (-180, 150)
    assert whole(cube) == pytest.approx(expected(), rel=1e-6)


@pytest.mark.parametrize("change", ["flipped", "west", "order", "named", "kelvin", "half past"])
def test_other_orders_and_units_are_the_same_field(tmp_path: Path, change: str) -> None:
    pytest.importorskip("h5netcdf")
    data = dataset()
    if change == "flipped":
        data = data.isel(lat=slice(None, None, -1))
    elif change == "west":
        data = data.assign_coords(lon=(data.lon + 180) % 360 - 180).sortby("lon")
    elif change == "order":
        data = data.transpose("lon", "level", "time", "lat")
    elif change == "named":
        data = data.rename(lat="YAX", lon="XAX", time="T", level="Z")
        data.YAX.attrs["units"], data.XAX.attrs["units"] = "degrees_north", "degrees_east"
    elif change == "kelvin":
        data["t2m"] = data.t2m + np.float32(273.15)
        data.t2m.attrs["units"] = "K"
    else:
        data = data.assign_coords(time=data.time + np.timedelta64(30, "m"))
    data.to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    cube = gather(tmp_path / "b.nc")
    assert whole(cube) == pytest.approx(expected(), rel=1e-6)
    assert cube.times.tolist() == times(4).tolist()
    assert any("half past" in note for note in cube.notes) == (change == "half past")


def test_variables_may_lie_in_several_files(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    data = dataset()
    data[["t2m"]].to_netcdf(tmp_path / "t.nc", engine="h5netcdf")
    data[["u"]].isel(time=slice(0, 3)).to_netcdf(tmp_path / "u1.nc", engine="h5netcdf")
    paths = importing.paths(f"{tmp_path}/t.nc, {tmp_path}/u*.nc")
    cube = cubes.gather(paths, build(varmap.VariableMap, MAP), Wish(), {})
    assert whole(cube) == pytest.approx(expected()[:3], rel=1e-6)
    assert cube.notes == ("1 times are left out that not all channels have",)
    with pytest.raises(DataError, match=r"none\*\.nc: no such file; kinds that can be read: \.nc, "):
        importing.paths(f"{tmp_path}/none*.nc")


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        ({"T2M": {"source": "temp"}}, "no variable 'temp' for T2M; there are t2m, u"),
        ({"U_48": {"source": "u"}}, r"has several levels \(level\); say which"),
        ({"U_48": {"source": "u", "level": 500}}, r"no level 500 on the axis 'level' \(400, 850\)"),
        ({"T2M": {"source": "t2m", "unit": "furlong"}}, "unit 'furlong'; expected K"),
        ({"SWGNT": {"source": "t2m", "unit": "J m-2"}}, "over how many seconds"),
    ],
)
def test_what_cannot_be_found_is_named(netcdf: Path, one: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        gather(netcdf, {"channels": one})


def test_sums_signs_and_scales(netcdf: Path) -> None:
    one = {"EFLUX": {"source": "t2m", "unit": "J m-2", "accumulated": 3600, "sign": -1}}
    two = {"EFLUX": {"source": "t2m", "scale": 2.0, "offset": 1.0}}
    plain = np.roll(dataset().t2m.values, 6, -1)
    assert whole(gather(netcdf, {"channels": one}))[:, 0] == pytest.approx(-plain / 3600, rel=1e-5)
    assert whole(gather(netcdf, {"channels": two}))[:, 0] == pytest.approx(2 * plain + 1, rel=1e-5)


def test_what_is_not_measured_needs_a_word(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    data = dataset()
    data["t2m"][:, :3] = np.nan
    data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(DataError, match=r"T2M .*: 30% of the map are NaN; say what stands there"):
        gather(tmp_path / "a.nc").read(0)
    filled = gather(tmp_path / "a.nc", {"channels": {"T2M": {"source": "t2m", "fill": 250.0}}}).read(0)
    assert (filled[0, :3] == 250).all()
    assert varmap.PRESETS["merra2-160"].channels["GWETROOT"].fill == 1
    assert varmap.PRESETS["merra2-160"].channels["LAI"].fill == 0


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    for name, reason in (("a.nc", "cannot be read"), ("a.npz", "cannot be read"), ("a.txt", "unknown kind of file")):
        (tmp_path / name).write_text("nothing")
        with pytest.raises(DataError, match=reason):
            opening.open_dataset(tmp_path / name, {})


def test_several_cubes_of_a_grib_file_are_named(tmp_path: Path) -> None:
    write_grib(tmp_path / "a.grib2")
    wanted = {"channels": {"T2M": {"source": "t2m"}}}
    messages = {"channels": {"T2M": {"source": "t2m", "filter_by_keys": {"typeOfLevel": "heightAboveGround"}}}}
    assert gather(tmp_path / "a.grib2", messages).read(0).shape == (1, 10, 12)
    cube = cubes.gather(
        [tmp_path / "a.grib2"], build(varmap.VariableMap, wanted), Wish(), {"typeOfLevel": "heightAboveGround"}
    )
    assert cube.read(0).shape == (1, 10, 12)


def test_axes_of_time() -> None:
    def axis(values: list[float], unit: str, calendar: str = "standard") -> Any:
        attributes = {"units": unit, "calendar": calendar}
        return xarray.Dataset(coords={"time": ("time", np.array(values), attributes)})

    assert opening.times(axis([0, 6], "hours since 2000-02-28 18:00:00"), "time").tolist() == [
        np.datetime64("2000-02-28T18", "s").item(),
        np.datetime64("2000-02-29T00", "s").item(),
    ]
    year_0 = opening.times(axis([366.0], "hour since 0000-01-01 00:00:00"), "time")
    assert str(year_0[0]) == "0000-01-16T06:00:00"
    with pytest.raises(DataError, match="unit 'weeks since 2000-01-01'; expected seconds, minutes"):
        opening.times(axis([1], "weeks since 2000-01-01"), "time")
    pytest.importorskip("cftime")
    no_leap = opening.times(axis([59], "days since 2000-01-01", "noleap"), "time")
    assert str(no_leap[0]) == "2000-03-01T00:00:00"
    old = opening.times(axis([17_522_904.0], "hours since 1-1-1 00:00:0.0"), "time")
    assert str(old[0]) == "2000-01-01T00:00:00"


def test_maps_are_strict(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no preset"):
        varmap.load("merra")
    with pytest.raises(ConfigError, match="sauce: unknown key"):
        varmap.load(write_map(tmp_path, {"channels": {"T2M": {"source": "a", "sauce": 1}}}))
    with pytest.raises(ConfigError, match="SST: not a channel of merra2-160; say its unit"):
        varmap.load(write_map(tmp_path, {"channels": {"SST": {"source": "a"}}}))
    for name, one in varmap.PRESETS.items():
        assert one.approximate == (name != "merra2-160")
    assert varmap.PRESETS["era5-wb2"].channels["U_48"].level == 400


# --- splits ---


@pytest.mark.parametrize("seed", range(8))
def test_no_pair_of_the_two_splits_is_closer_than_the_gap(seed: int) -> None:
    stamps = times(400)
    spans = list(pairwise(stamps))
    state = splits.by_time(spans, 10, 0.2, 48, seed)
    assert set(state) == {splits.TRAIN, splits.VAL, splits.DROPPED}
    begins, ends = (np.array([span[end] for span in spans]) for end in (0, 1))
    tested = np.flatnonzero(state == splits.VAL)
    trained = np.flatnonzero(state == splits.TRAIN)
    apart = np.maximum(begins[tested][:, None] - ends[trained], begins[trained] - ends[tested][:, None])
    assert apart.min() >= np.timedelta64(48, "h")
    loose = splits.by_time(spans, 10, 0.2, 0, seed)  # without a gap they are neighbours
    trained = np.flatnonzero(loose == splits.TRAIN)
    tested = np.flatnonzero(loose == splits.VAL)
    near = np.maximum(begins[tested][:, None] - ends[trained], begins[trained] - ends[tested][:, None])
    assert near.min() < np.timedelta64(48, "h")
    assert 0.05 < len(tested) / len(spans) < 0.4


def test_places_of_validation_share_no_point_with_training() -> None:
    parts = splits.crops((20, 36), (8, 8), (4, 4), closed=True)
    assert len(parts) == 4 * 9
    state = splits.by_place(parts, 36, 0.3, 0)
    seen = {kind: set() for kind in (splits.TRAIN, splits.VAL, splits.DROPPED)}
    for part, kind in zip(parts, state, strict=True):
        seen[int(kind)] |= set(part.columns(36).tolist())
    assert seen[splits.TRAIN]
    assert seen[splits.VAL]
    assert not seen[splits.TRAIN] & seen[splits.VAL]
    assert seen[splits.DROPPED] & seen[splits.TRAIN]


def test_what_is_usual_is_known_from_training_alone() -> None:
    values = np.random.default_rng(0).normal(5, 2, (24, 1, 4, 4))
    values[:, 0, 0, 0] = np.nan
    stamps = np.array([np.datetime64(f"20{year:02d}-{month:02d}-15", "s") for year in (0, 1) for month in range(1, 13)])
    found = usual.measure(lambda number: values[number], stamps, range(24), "month")
    assert found.mean.shape == (12, 1, 4, 4)
    assert found.mean[3, 0, 1, 1] == pytest.approx(values[[3, 15], 0, 1, 1].mean())
    assert np.isnan(found.anomaly(values[0], stamps[0])[0, 0, 0])
    with pytest.raises(DataError, match="too few times"):
        usual.measure(lambda number: values[number], stamps, range(12), "month")


# --- whole imports ---


def test_times_of_validation_do_not_tell_what_is_usual(tmp_path: Path, long: Path) -> None:
    ready = importing.prepare(options(tmp_path, long, **TEMPLATED))
    steps = {split: {step for one in ready.pieces if one.split == split for step in one.steps} for split in tree.SPLITS}
    assert not steps["train"] & steps["val"]
    known = usual.measure(ready.cube.read, ready.cube.times, sorted(steps["train"]), "mean")
    every = usual.measure(ready.cube.read, ready.cube.times, range(90), "mean")
    assert ready.usual is not None
    assert np.array_equal(ready.usual.mean, known.mean)
    assert not np.array_equal(ready.usual.mean, every.mean)


def options(folder: Path, source: Path, **more: Any) -> importing.Options:
    given = {"source": str(source), "variables": write_map(folder), **more}
    return build(importing.Options, given)


@pytest.fixture
def long(tmp_path: Path) -> Path:
    pytest.importorskip("h5netcdf")
    dataset(count=90, hours=24).to_netcdf(tmp_path / "long.nc", engine="h5netcdf")
    return tmp_path / "long.nc"


TEMPLATED = {
    "max_samples": 120,
    "targets": "templated",
    "climatology": "mean",
    "dt_hours": 24,
    "crop": "6x6",
    "stride": "4x4",
}


def test_templated_targets_tell_what_the_field_shows(tmp_path: Path, long: Path) -> None:
    done = composing.write(tmp_path / "data", options(tmp_path, long, anomaly=True, **TEMPLATED))
    root = tmp_path / "data"
    assert not validate(root, Rules(strict=True)).problems
    layout = tree.layout(root / "train")
    assert layout.names == ("T2M_anomaly", "U_48_anomaly")
    labels = tuple(layout.labels.values())
    for split in ("train", "val"):
        entries = tree.read_index(root / split)
        assert len(entries) == done.entries[split] > 8
        for one in entries:
            assert one.facts is not None
            seen = composing.facts.look(tree.load(root / split / one.climate_file).numpy(), labels)
            assert seen is not None
            told = grammar.read(one.target, labels)
            kind = str(one.facts["asked"])
            assert set(told) == set(grammar.TOLD[kind])
            if kind == "comparison":
                assert (one.facts["about"], told["comparison"]) in seen.halves
            else:
                assert all(told[key] == seen.facts[key] for key in told)


def test_answers_are_even_and_do_not_follow_from_the_place(tmp_path: Path, long: Path) -> None:
    rows = composing.templated(importing.prepare(options(tmp_path, long, **TEMPLATED)))
    counts: dict[str, Counter[str]] = {}
    at_place: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        kind = str(row["facts"]["asked"])
        if kind in ("location", "sign", "trend") and row["split"] == "train":
            counts.setdefault(kind, Counter())[str(row["facts"][kind])] += 1
            at_place.setdefault((kind, str(row["location"])), Counter())[str(row["facts"][kind])] += 1
    for kind, some in counts.items():
        assert max(some.values()) <= max(min(some.values()), np.median(list(some.values())) / 2 + 1), (kind, some)
    for (kind, _), some in at_place.items():
        if kind != "location":
            assert max(some.values()) / some.total() < 0.75


def test_a_plain_import_keeps_units_and_writes_what_is_usual(tmp_path: Path, long: Path) -> None:
    composing.write(tmp_path / "data", options(tmp_path, long, **TEMPLATED))
    one = tree.read_index(tmp_path / "data" / "train")[0]
    folder = tmp_path / "data" / "train"
    values = tree.load(folder / one.climate_file).numpy()
    data = dataset(count=90, hours=24)
    assert isinstance(one.time, tuple)
    assert one.lat is not None
    assert one.lon is not None
    stamps = [np.datetime64(str(time).rstrip("Z")) for time in one.time]
    lons = (np.linspace(one.lon[0], one.lon[-1], 6) + 360) % 360
    there = data.t2m.sel(time=stamps, lat=np.linspace(one.lat[0], one.lat[-1], 6), lon=lons)
    assert values[:, 0] == pytest.approx(there.values + 273.15, rel=1e-6)
    assert one.climatology_file is not None
    assert tree.load(folder / one.climatology_file, axes=3).shape == (2, 6, 6)


def test_the_same_import_gives_the_same_files(tmp_path: Path, long: Path) -> None:
    for name in ("one", "two"):
        composing.write(tmp_path / name, options(tmp_path, long, **{**TEMPLATED, "max_samples": 40}))
    one, two = ((tmp_path / name / "train" / "index.json").read_text() for name in ("one", "two"))
    assert one == two
    assert len(tree.read_index(tmp_path / "one" / "train")) + len(tree.read_index(tmp_path / "one" / "val")) in (
        39,
        40,
        41,
    )


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_texts_are_joined_by_time_and_place(tmp_path: Path, long: Path, suffix: str) -> None:
    rows = [
        {"time": f"{str(stamp)[:10]}T01:00:00Z", "event": f"Flood {number}", "coordinate": "(10.0, -60.0)"}
        for number, stamp in enumerate(times(90, 24)[1:89:3])
    ]
    rows.append({"time": "1990-01-01", "event": "Long ago", "coordinate": "(10, -60)"})
    path = tmp_path / f"events{suffix}"
    if suffix == ".csv":
        lines = [f'{row["time"]},{row["event"]},"{row["coordinate"]}"' for row in rows]
        path.write_text("\n".join(["time,event,coordinate", *lines]) + "\n")
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    wanted = options(tmp_path, long, text=str(path), dt_hours=24, crop="6x6")
    done = composing.write(tmp_path / "data", wanted)
    assert any("texts have no field" in note for note in done.notes)
    for split in ("train", "val"):
        for one in tree.read_index(tmp_path / "data" / split):
            assert one.text == joining.QUESTION
            assert isinstance(one.time, tuple)
            number = int(one.target.removeprefix("Flood "))
            assert str(one.time[-1])[:10] == rows[number]["time"][:10]
            assert one.lat is not None
            assert one.lon is not None
            assert one.lat[0] <= 10 <= one.lat[-1]
            assert one.lon[0] <= -60 <= one.lon[-1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2020-01-02,,", "row 0: no target"),
        ("soon,Rain,", "row 0: time: 'soon' is no time"),
        ('2020-01-02,Rain,"(10)"', r"row 0: coordinate .*expected \(lat, lon\)"),
        ('2020-01-02,Rain,"(100, 10)"', "expected latitude, longitude"),
    ],
)
def test_a_wrong_text_is_named(tmp_path: Path, row: str, reason: str) -> None:
    (tmp_path / "a.csv").write_text(f"time,event,coordinate\n{row}\n")
    with pytest.raises(DataError, match=reason):
        joining.read_texts(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, "give either text"),
        ({"targets": "templated"}, "need climatology=mean"),
        ({**TEMPLATED, "grid": "7x8"}, "grid: expected even numbers"),
        ({**TEMPLATED, "times": "2030-01-01/2031-01-01"}, "the files have none between"),
        ({**TEMPLATED, "dt_hours": 7}, "no two of 90 times are 7 hours apart"),
        ({**TEMPLATED, "crop": "64x64"}, "crop 64x64: the map has 10 x 12 points"),
        ({**TEMPLATED, "block_days": 9000}, "no sample is left for val"),
    ],
)
def test_what_cannot_be_imported_is_said_and_nothing_written(
    tmp_path: Path, long: Path, more: Mapping[str, Any], reason: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=reason):
        composing.write(tmp_path / "data", options(tmp_path, long, **more))
    assert not (tmp_path / "data").exists()


def test_the_command_imports_and_lists(tmp_path: Path, long: Path) -> None:
    words = ["data", "import", "climate", str(tmp_path / "data"), f"source={long}", f"variables={write_map(tmp_path)}"]
    words += ["targets=templated", "climatology=mean", "dt_hours=24", "max_samples=30"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"{tmp_path}/data: entries of train " in done.output
    assert CliRunner().invoke(app, ["data", "verify", "climate", "--root", str(tmp_path / "data")]).exit_code == 0
    assert "wxcbench-text" in CliRunner().invoke(app, ["data", "list"]).output


def test_wxcbench_discussions_become_a_tree(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    lines = ["file_name,text"]
    for number in range(12):
        stamp = np.datetime64("2020-03-01", "s") + np.timedelta64(5 * number, "D")
        data = dataset(count=1, seed=number).assign_coords(time=[stamp])
        data.to_netcdf(tmp_path / f"hrrr{number}.nc", engine="h5netcdf")
        lines.append(f'hrrr{number}.nc,"Storms, number {number}."')
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    words = ["data", "import", "wxcbench-text", str(tmp_path / "data"), "--root", str(tmp_path)]
    words += [f"variables={write_map(tmp_path)}", "grid=6x8", "val_fraction=0.3"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert not validate(tmp_path / "data", Rules("repeat", strict=True)).problems
    (one, *_) = tree.read_index(tmp_path / "data" / "train")
    assert one.target.startswith("Storms, number ")
    assert tree.load(tmp_path / "data" / "train" / one.climate_file).shape == (1, 2, 6, 8)
    (tmp_path / "metadata.csv").write_text("file_name,text\n../a.nc,x\n")
    done = CliRunner().invoke(app, [*words[:3], str(tmp_path / "other"), *words[4:]])
    assert isinstance(done.exception, DataError)
    assert "leaves the folder" in str(done.exception)
