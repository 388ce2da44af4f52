"""Questions about fields of any kind are answered as in training, and what does not fit is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sensorium
from sensorium import cli, families, use
from sensorium.data.fields import channels, tree
from sensorium.engine import loop, settings
from sensorium.engine.contract import Evaluation, Host, Looked
from sensorium.errors import ConfigError, DataError, RunError
from sensorium.families.climate_text.asked import Field, Place
from sensorium.families.climate_text.data import EvalSource
from sensorium.families.climate_text.use import Answers

FAMILY = families.load("climate_text")
QUESTION = "Where is the strongest anomaly?"
CHANGES = {
    "data": {"evaluation": {"max_new_tokens": 12, "answers": 2, "maps": 0}},
    "seed": 3,
    "train": {"steps": 2, "device": "cpu"},
    "track": {"tensorboard": False},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A trained run, and the demonstration data that it made."""
    root = tmp_path_factory.mktemp("climate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(root / "cache"))
        loop.train(FAMILY, settings.resolve(FAMILY, "tiny", CHANGES), root / "run", quiet=True)
        yield root / "run"


@pytest.fixture(scope="module")
def model(run: Path) -> Answers:
    found = sensorium.load(run)
    assert isinstance(found, Answers)
    with torch.no_grad():  # the field matters from the first step on
        for name, parameter in found.model.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(0.3)
    return found


@pytest.fixture(scope="module")
def file(run: Path) -> Path:
    return next(run.parent.glob("cache/*/val")) / "climate_00001.pt"


def same(left: Field, right: Field) -> bool:
    ours, theirs = left.sample, right.sample
    arrays = all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("lat", "lon", "times"))
    return arrays and torch.equal(ours.field, theirs.field) and ours.names == theirs.names


def test_a_file_of_the_tree_is_what_training_made_of_it(model: Answers, file: Path, run: Path) -> None:
    """The batch of a question equals that of the validation split."""
    config = settings.resolve(FAMILY, "tiny", CHANGES)
    source = FAMILY.sources(config, Host()).val
    assert isinstance(source, EvalSource)
    row = next(n for n, one in enumerate(source.part.entries) if one.climate_file == file.name)
    batch = model._batch(source.part.entries[row].text, model.field(file))
    theirs = source.collate([source.example(row, 0)])
    for name in ("field", "static", "climatology", "lat", "lon", "day_hour", "input_time", "climatology_given"):
        assert torch.equal(batch[name], theirs[name]), name
    prompt = batch["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"], theirs["input_ids"][:, :prompt])
    assert not theirs["target_mask"][0, :prompt].any()


def test_the_field_changes_the_answer(model: Answers, file: Path) -> None:
    field = model.field(file)
    with_it, without = model.compare(QUESTION, field)
    assert with_it == model.answer(QUESTION, file)
    assert without == model.answer(QUESTION)
    other = replace(field, sample=replace(field.sample, field=field.sample.field.flip(-1)))
    features = [model.features(model._batch(QUESTION, one))[1] for one in (field, other, None)]
    assert not torch.allclose(features[0], features[1], atol=1e-4)
    assert not torch.allclose(features[0], features[2], atol=1e-4)
    assert features[0].shape == (1, 128)


def test_pieces_of_text_make_the_answer(model: Answers, file: Path) -> None:
    pieces: list[str] = []
    assert model.answer(QUESTION, file, said=pieces.append) == "".join(pieces)
    assert len(pieces) > 1


def test_a_tensor_with_its_place(model: Answers, file: Path) -> None:
    entry = next(one for one in tree.read_index(file.parent) if one.climate_file == file.name)
    place = Place(entry.lat, entry.lon, entry.time)
    values = tree.load(file)
    field = model.field(values, place)
    assert same(field, model.field(file))
    assert field.notes == ()
    assert same(model.field(values.numpy(), place), field)
    turned = model.field(values.flip(-2), replace(place, lat=list(entry.lat or [])[::-1]))
    assert same(turned, field)
    bare = model.field(values)
    assert "a grid of 0.5 x 0.625 degrees around 0 N 0 E is assumed" in bare.notes[0]
    text = model.answer(QUESTION, values, lat=entry.lat, lon=entry.lon, time=entry.time)
    assert text == model.answer(QUESTION, field)


def write_nc(path: Path, file: Path, names: tuple[str, ...], *, celsius: bool = False) -> Path:
    """The field of a ``.pt`` as NetCDF, north first."""
    import xarray

    entry = next(one for one in tree.read_index(file.parent) if one.climate_file == file.name)
    values = tree.load(file).numpy()
    lat = np.linspace(*(entry.lat or ()), values.shape[2])
    lon = np.linspace(*(entry.lon or ()), values.shape[3])
    variables = {}
    for number, name in enumerate(names):
        warm = celsius and name == "T2M"
        shown = values[:, number, ::-1] - (273.15 if warm else 0)
        channel = channels.known(name)
        assert channel is not None
        variables[name] = (("time", "lat", "lon"), shown, {"units": "degC" if warm else channel.unit})
    coordinates = {
        "time": [np.datetime64(one.rstrip("Z"), "ns") for one in entry.time or ()],
        "lat": ("lat", lat[::-1], {"units": "degrees_north"}),
        "lon": ("lon", lon, {"units": "degrees_east"}),
    }
    xarray.Dataset(variables, coordinates).to_netcdf(path, engine="h5netcdf")
    return path


def test_a_gridded_file_gives_the_same_field(model: Answers, file: Path, tmp_path: Path) -> None:
    path = write_nc(tmp_path / "field.nc", file, model.known.names, celsius=True)
    field, theirs = model.field(path), model.field(file)
    assert field.sample.names == theirs.sample.names
    assert field.sample.lat[0] < field.sample.lat[-1]
    for name in ("lat", "lon"):
        np.testing.assert_allclose(getattr(field.sample, name), getattr(theirs.sample, name), atol=1e-4)
    assert np.array_equal(field.sample.times, theirs.sample.times)
    torch.testing.assert_close(field.sample.field, theirs.sample.field, rtol=0, atol=1e-3)
    assert field.sample.static is None
    west, east = (float(field.sample.lon[n]) for n in (4, 11))
    south, north = (float(field.sample.lat[n]) for n in (2, 9))
    part = model.field(path, box=(west - 0.01, south - 0.01, east + 0.01, north + 0.01)).sample
    assert torch.equal(part.field, field.sample.field[..., 2:10, 4:12])


def test_what_does_not_fit_is_said(model: Answers, file: Path, tmp_path: Path) -> None:
    names = model.known.names
    path = write_nc(tmp_path / "few.nc", file, names[:-1])
    with pytest.raises(DataError, match=f"no variable {names[-1]!r} for {names[-1]}"):
        model.field(path)
    whole = write_nc(tmp_path / "all.nc", file, names)
    with pytest.raises(DataError, match=r"has no 1998-12-31T18:00:00Z .* give two that it has: FROM/TO"):
        model.field(whole, Place(time="1999-01-01T00:00:00Z"))
    table = tmp_path / "map.yaml"
    table.write_text("channels: {T2M: {source: t2m}}")
    with pytest.raises(DataError, match=r"the model knows EFLUX, HFLUX.*name them in a table"):
        model.field(whole, variables=str(table))
    values = tree.load(file).clone()
    with pytest.raises(DataError, match="7 channels; the model knows 8"):
        model.field(values[:, :7])
    values[:, names.index("T2M")] -= 273.15
    with pytest.raises(DataError, match=r"field: T2M -?[\d.]+\.\.[\d.]+: .*C"):
        model.field(values)
    values[0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="holds what is no number"):
        model.field(values)
    with pytest.raises(DataError, match="1 times; the policy 'exact' wants 2"):
        model.answer(QUESTION, tree.load(file)[:1])
    with pytest.raises(ConfigError, match="the question is empty"):
        model.answer(" ", file)
    with pytest.raises(ConfigError, match="give the field, too"):
        model.answer(QUESTION, lat=(0, 1))


def ask(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli.app, ["answer", *words])
    return done.exit_code, done.stdout, str(done.exception or "")


def test_the_command(run: Path, file: Path, tmp_path: Path) -> None:
    expected = sensorium.load(run).compare(QUESTION, sensorium.load(run).field(file))
    base = (str(run), "--field", str(file), "--question", QUESTION)
    code, out, _ = ask(*base, "--compare")
    assert (code, out.splitlines()) == (0, [expected[0], f"without the field: {expected[1]}"])
    code, out, _ = ask(*base, "--json", "--compare", "--map", str(tmp_path / "map.png"))
    assert code == 0
    assert json.loads(out) == {
        "question": QUESTION,
        "answer": expected[0],
        "notes": [],
        "without_field": expected[1],
        "map": str(tmp_path / "map.png"),
    }
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert "expected west,south,east,north" in ask(*base, "--bbox", "1,2,3")[2]
    assert "bbox and variables are for gridded files" in ask(*base, "--bbox", "1,2,3,4")[2]
    with pytest.raises(DataError, match="no such file"):
        use.answerer(run).answer_file(QUESTION, Looked(tmp_path / "no.nc"), print, compare=False, picture=False)


@pytest.mark.parametrize("used", [False, True])
def test_use_of_the_field_may_be_required(
    run: Path, tmp_path: Path, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was hardly trained does not use it; told that it does, the same command passes."""
    shutil.copytree(run, tmp_path / "run")
    if used:
        monkeypatch.setattr("sensorium.engine.evaluate.evaluate_run", lambda *_: Evaluation({"climate_used": 1.0}))
    words = ["evaluate", str(tmp_path / "run"), "--split", "val", "--require-climate-use"]
    found = CliRunner().invoke(cli.app, words)
    assert isinstance(found.exception, RunError) is not used
    if not used:
        assert "CLIMATE NOT USED" in found.output
        assert "climate_used is 0, and --require-use asks for 1: CLIMATE NOT USED" in str(found.exception)
    assert CliRunner().invoke(cli.app, words[:-1]).exit_code == 0


def test_an_export_answers_alike(run: Path, file: Path, tmp_path: Path) -> None:
    folder, line = use.export(run, "hf", out=tmp_path / "model")
    assert "sensorium.load(FOLDER) reads it" in line
    assert sensorium.load(folder).compare(QUESTION, sensorium.load(folder).field(file)) == sensorium.load(run).compare(
        QUESTION, sensorium.load(run).field(file)
    )
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md", "tokenizer"}
    assert "climate-demo" not in (folder / "config.json").read_text()
