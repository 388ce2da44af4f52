"""Trees of fields: what is read, what is refused, and that validation misses nothing."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from field_trees import NAMES, change, entry, field, make_tree
from typer.testing import CliRunner

from sensorium.cli import app
from sensorium.data.fields import samples, tree
from sensorium.data.fields.validation import REASONS, Report, Rules, validate
from sensorium.data.fields.writing import new_tree
from sensorium.errors import DataError

Edit = Callable[[Path], object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "data")


# --- reading ---


def test_an_entry_keeps_what_its_owner_wrote(root: Path) -> None:
    change(root, "train", 1, lambda one: one.update(mood="good", variables=NAMES, facts={"asked": "sign"}))
    one = tree.read_index(root / "train")[1]
    assert (one.climate_file, one.lat, one.variables) == ("climate_00002.pt", (10.0, 17.0), tuple(NAMES))
    assert one.model_extra == {"mood": "good"}
    assert one.facts == {"asked": "sign"}


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda one: one.pop("target"), "target is missing"),
        (lambda one: one.update(text=3), "text: input should be a valid string"),
        (lambda one: one.update(climate_file="../val/climate_00101.pt"), "leaves the folder of the split"),
        (lambda one: one.update(climate_file="/etc/passwd"), "leaves the folder of the split"),
        (lambda one: one.update(static_file="a/../../x.pt"), "leaves the folder of the split"),
        (lambda one: one.update(lat=["a"]), "lat"),
        (lambda one: one.update(input_time=-1), "input_time: input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_entry_is_named(root: Path, edit: Callable[[dict[str, Any]], object], reason: str) -> None:
    change(root, "train", 2, edit)
    with pytest.raises(DataError) as caught:
        tree.read_index(root / "train")
    assert "index.json: 1 wrong\n  entry 2: " in str(caught.value)
    assert reason in str(caught.value)


def test_an_index_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder; it should hold index\.json"):
        tree.read_index(tmp_path / "none")
    for content, reason in (("{}", "expected a list"), ("[", "index.json: "), ("[]", "lists no entries")):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(DataError, match=reason):
            tree.read_index(tmp_path)


class Evil:
    """Runs code when it is unpickled in a careless way."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code of a file was run",))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "damaged"),
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "damaged"),
        (lambda path: torch.save(Evil(), path), "more than tensors and plain values"),
        (lambda path: torch.save({"x": field(0)}, path), "holds a dict; expected one tensor"),
        (lambda path: torch.save(field(0).half(), path), "numbers of type float16; expected float32"),
        (lambda path: torch.save(field(0)[0], path), r"shape \[3, 8, 8\]; expected \[T, C, H, W\]"),
        (lambda path: torch.save(torch.zeros(1, 1, 1, 1).expand(2, 160, 64, 64), path), "no plain tensor"),
        (lambda path: (path.unlink(), path.mkdir()), "a folder"),
    ],
)
def test_a_file_that_is_no_field_is_refused(root: Path, write: Edit, reason: str) -> None:
    path = root / "train" / "climate_00001.pt"
    write(path)
    with pytest.raises(DataError, match=reason):
        tree.load(path)


def test_a_field_is_turned_with_its_companions(root: Path) -> None:
    """The south comes first; what belongs to a pixel stays with it."""
    static, climatology = torch.rand(4, 8, 8), torch.rand(3, 8, 8)
    torch.save(static, root / "train" / "s.pt")
    torch.save(climatology, root / "train" / "c.pt")
    plain = samples.read(root / "train", tree.read_index(root / "train")[0], tree.layout(root / "train"))
    change(root, "train", 0, lambda one: one.update(lat=[17.0, 10.0], static_file="s.pt", climatology_file="c.pt"))
    turned = samples.read(root / "train", tree.read_index(root / "train")[0], tree.layout(root / "train"))
    assert torch.equal(turned.field, plain.field.flip(-2))
    assert turned.lat.tolist() == plain.lat.tolist() == list(range(10, 18))
    assert turned.static is not None
    assert turned.climatology is not None
    assert torch.equal(turned.static, static.flip(-2))
    assert torch.equal(turned.climatology, climatology.flip(-2))
    assert (turned.input_time, turned.lead_time, turned.assumed) == (6.0, 0.0, False)


def test_the_160_channels_of_a_bare_file_are_those_of_merra2(tmp_path: Path) -> None:
    one = tree.read_entry({"climate_file": "a.pt", "text": "x", "target": "y"})
    torch.save(torch.zeros(2, 160, 4, 4), tmp_path / "a.pt")
    found = samples.read(tmp_path, one, tree.layout(tmp_path))
    assert found.names[12] == "T2M"
    assert found.assumed
    torch.save(torch.zeros(2, 5, 4, 4), tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a\.pt: 5 channels without names; list them in channels\.json"):
        samples.read(tmp_path, one, tree.layout(tmp_path))


# --- validation ---


def nan(path: Path) -> None:
    found = torch.load(path)
    found[1, 2, 3, 4] = torch.nan
    torch.save(found, path)


def celsius(path: Path) -> None:
    found = torch.load(path)
    found[:, 0] -= 273.15
    torch.save(found, path)


def last(root: Path) -> Path:
    return root / "val" / "climate_00002.pt"


def edit_last(edit: Callable[[dict[str, Any]], object]) -> Edit:
    return lambda root: change(root, "val", 1, edit)


BAD: dict[str, Edit] = {
    "entry": edit_last(lambda one: one.pop("text")),
    "missing file": lambda root: last(root).unlink(),
    "unreadable file": lambda root: last(root).write_bytes(b"no tensor"),
    "other shape": lambda root: torch.save(field(7, side=10), last(root)),
    "number of times": lambda root: torch.save(field(7, times=3), last(root)),
    "sides": lambda root: torch.save(field(7)[..., :7], last(root)),
    "channels": edit_last(lambda one: one.update(variables=["A", "B"])),
    "not finite": lambda root: nan(last(root)),
    "outside of its range": lambda root: celsius(last(root)),
    "position": edit_last(lambda one: one.update(lat=[1.0, 2.0, 3.0])),
    "time": edit_last(lambda one: one.update(time=["2005-05-04T06:00:00Z", "2005-05-04T00:00:00Z"])),
    "empty text": edit_last(lambda one: one.update(text=" ")),
    "empty target": edit_last(lambda one: one.update(target="")),
    "too long": edit_last(lambda one: one.update(target="word " * 60)),
    "field in both splits": lambda root: torch.save(field(0), last(root)),
    "text in both splits": edit_last(lambda one: one.update(text=entry(0)["text"], target=entry(0)["target"])),
    "time in both splits": edit_last(lambda one: one.update(time=entry(1)["time"])),
    "positions assumed": edit_last(lambda one: (one.pop("lat"), one.pop("lon"), one.pop("time"))),
}


def check(root: Path) -> Report:
    return validate(root, Rules(strict=True, tokens=lambda text, target: len(target.split()), max_length=50))


def test_a_good_tree_has_no_problem(root: Path) -> None:
    report = check(root)
    assert not report.problems
    assert report.valid == {"train": 3, "val": 2}
    assert list(report.lines()) == ["train  3 of 3 entries are valid", "val    2 of 2 entries are valid"]


def test_there_is_a_bad_tree_for_every_reason() -> None:
    assert BAD.keys() == set(REASONS)


@pytest.mark.parametrize("reason", REASONS)
def test_every_fault_of_the_last_entry_is_found(root: Path, reason: str) -> None:
    BAD[reason](root)
    report = check(root)
    assert reason in report.counts
    assert {(problem.split, problem.entry) for problem in report.problems} == {("val", 1)}
    assert report.valid == {"train": 3, "val": 1}


def test_wrong_units_are_guessed_and_positions_noted(root: Path) -> None:
    celsius(last(root))
    (problem,) = check(root).problems
    assert "val[1] climate_00002.pt: T2M " in str(problem)
    assert "looks like °C, K expected" in str(problem)
    BAD["positions assumed"](root)
    (note,) = validate(root, Rules()).notes
    assert note.startswith("positions assumed: 1 entries")


def test_texts_of_a_closed_grammar_may_come_again(root: Path) -> None:
    """With facts, the same question and answer about another field is no leak."""
    BAD["text in both splits"](root)
    assert check(root).counts == {"text in both splits": 1}
    for split, number in (("train", 0), ("val", 1)):
        change(root, split, number, lambda one: one.update(facts={"asked": "sign"}))
    assert not check(root).problems


def test_the_command_reports_and_leaves_with_1(root: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["data", "verify", "climate", "--root", str(root), "--strict"])
    assert done.exit_code == 0, done.output
    nan(last(root))
    done = runner.invoke(app, ["data", "verify", "climate", "--root", str(root)])
    assert done.exit_code == 1
    report = json.loads((root / "validation_report.json").read_text())
    assert report["reasons"] == {"not finite": 1}
    assert report["is_valid"] is False
    assert report["problems"][0]["message"] == "NaN or infinite numbers in U10M"


# --- writing ---


def test_a_tree_replaces_only_a_tree(tmp_path: Path) -> None:
    target = make_tree(tmp_path / "data")
    with pytest.raises(DataError, match="exists and is not empty; name a new folder, or add --overwrite"):
        new_tree(target, 0, overwrite=False).__enter__()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"holds 'thesis.txt', which is no part of a tree of fields; not overwritten"):
        new_tree(target, 0, overwrite=True).__enter__()
    (target / "thesis.txt").unlink()
    with pytest.raises(ZeroDivisionError), new_tree(target, 0, overwrite=True):
        raise ZeroDivisionError
    assert (target / "train" / "index.json").is_file()  # the old one stays until the new one is whole
    with new_tree(target, 0, overwrite=True) as folder:
        (folder / "train").mkdir()
    assert [path.name for path in target.iterdir()] == ["train"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
