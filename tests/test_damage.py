"""Damage of a run: whatever happens to a file of it, it is found, said in one line, and never loaded.

``SENSORIUM_FLIPS=10000 pytest tests/test_damage*.py`` flips ten times as many bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import TOY, toy_config
from test_resume import assert_equal_runs
from wrecks import FLIPS, WRECKS, flipped, forge_file, put_link, state

from sensorium.engine import checkpoint, loop, portable, report_data, rundir, session
from sensorium.engine.files import cut_back
from sensorium.engine.listener import Saved
from sensorium.engine.report import write_report
from sensorium.engine.results import read_result
from sensorium.errors import CheckpointError, SensoriumError

STEPS, KEPT = 6, 4
CONFIG = toy_config({"train": {"steps": STEPS}, "checkpoint": {"every_steps": 1, "keep": KEPT}})
FILES = (checkpoint.MANIFEST, checkpoint.STATE, checkpoint.WEIGHTS, checkpoint.OPTIMIZER)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, for reading only."""
    run = tmp_path_factory.mktemp("whole") / "run"
    loop.train(TOY, CONFIG, run, quiet=True)
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """As a kill after the last checkpoint leaves it."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    shutil.rmtree(tmp_path / "run/evaluation")
    return tmp_path / "run"


def newest_of(run: Path) -> Path:
    return checkpoint.folder_of(run, STEPS)


def usable(run: Path) -> tuple[str | None, list[str]]:
    """The name of the checkpoint that a resume takes, and what is said before."""
    said = []
    for path, content in session.newest(run, "toy"):
        if not isinstance(content, str):
            return path.name, said
        said.append(content)
    return None, said


def passed_over(run: Path, damaged: Path) -> str:
    """The one line that says why ``damaged``, the newest, is passed over for the one before; asked for by its name, it
    is an error for the same reason."""
    taken, said = usable(run)
    assert taken == checkpoint.folder_of(run, STEPS - 1).name
    (line,) = said
    assert line.startswith(f"passed over: {damaged}: ")
    assert "\n" not in line
    with pytest.raises(CheckpointError) as caught:
        session.open_run(TOY, run, damaged.name)
    assert caught.value.exit_code == 2
    return line


# ---------------------------------------------------------------- one byte


@pytest.mark.parametrize("name", FILES)
def test_each_flipped_byte_of_a_checkpoint_is_found(run: Path, name: str) -> None:
    folder = newest_of(run)
    for place in flipped(folder / name, FLIPS // len(FILES), FILES.index(name)):
        with pytest.raises(CheckpointError, match=folder.name) as caught:
            session.load(folder, "toy")
        assert "\n" not in str(caught.value), place
    session.load(folder, "toy")  # as it was


@pytest.mark.parametrize("name", ["config.yaml", "facts.json"])
def test_each_flipped_byte_of_configuration_and_facts_is_found(run: Path, name: str) -> None:
    before = rundir.stored_config(run), rundir.read_facts(run)
    for _ in flipped(run / name, 200, 5):
        with pytest.raises(CheckpointError, match=name):
            rundir.stored_config(run), rundir.read_facts(run)
    assert before == (rundir.stored_config(run), rundir.read_facts(run))


def test_a_flipped_byte_of_a_log_or_a_result_is_no_other_error(run: Path, whole: Path) -> None:
    """Their digits change nothing of the run: they are for people, and bear no checksum."""
    for name in ("metrics.jsonl", "times.jsonl", "summary.json", "environment.json", "evaluation/test.json"):
        shutil.copytree(whole / "evaluation", run / "evaluation", dirs_exist_ok=True)
        shutil.copy(whole / name, run / name)
        for _ in flipped(run / name, 40, 6):
            report_data.load(run)
            rundir.finished(run, STEPS)
            with suppress(CheckpointError):
                cut_back(run / name, STEPS) if name.endswith("jsonl") else read_result(run / name)


@pytest.fixture
def best(whole: Path, tmp_path: Path) -> Path:
    saved = Saved(whole, newest_of(whole), STEPS, 1.5, False, 0.25)
    portable.write_pt(saved, tmp_path / "best.pt")
    return tmp_path / "best.pt"


def test_each_flipped_byte_of_a_pt_file_is_found_or_means_nothing(best: Path) -> None:
    intact, lines = portable.read_pt(best), []
    for _ in flipped(best, 400, 7):
        try:
            read = portable.read_pt(best)
        except CheckpointError as error:
            lines.append(str(error))
            continue
        assert (read.head, read.config, read.facts) == (intact.head, intact.config, intact.facts)
        assert read.weights.keys() == intact.weights.keys()
        assert all(torch.equal(tensor, intact.weights[name]) for name, tensor in read.weights.items())
    assert not any("\n" in line for line in lines)
    assert len(lines) > 200  # the rest lies where the archive holds dates and padding


# ---------------------------------------------------------------- whole files and folders


@pytest.mark.parametrize("wreck", WRECKS)
def test_a_wrecked_file_of_the_newest_checkpoint_is_passed_over(run: Path, wreck: str) -> None:
    folder, aside = newest_of(run), run / "aside"
    shutil.copytree(folder, aside)
    for name in FILES:
        WRECKS[wreck](folder / name)
        passed_over(run, folder)
        shutil.rmtree(folder)
        shutil.copytree(aside, folder)
    assert usable(run) == (folder.name, [])


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "no readable manifest.json: No such file"),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.write_bytes(b"")), "Not a directory"),
    "a FIFO": (lambda folder: (shutil.rmtree(folder), os.mkfifo(folder)), "Not a directory"),
    "a link": (put_link, "is a link"),
    "renamed": (
        lambda folder: (shutil.rmtree(folder), folder.with_name("step_00000003").rename(folder)),
        "holds step 3, not that of its name",
    ),
}


@pytest.mark.parametrize("wreck", FOLDERS)
def test_a_wrecked_folder_is_passed_over(run: Path, wreck: str) -> None:
    damage, reason = FOLDERS[wreck]
    damage(newest_of(run))
    taken, said = usable(run)
    assert taken == "step_00000005"
    assert len(said) == 1
    assert reason in said[0]
    with pytest.raises(CheckpointError):
        session.open_run(TOY, run, newest_of(run).name)


@pytest.mark.parametrize("wreck", ["a file", "nowhere"])
def test_checkpoints_out_of_reach_do_not_begin_the_run_anew(run: Path, wreck: str) -> None:
    folder = run / "checkpoints"
    folder.rename(run / "away")
    folder.write_bytes(b"") if wreck == "a file" else folder.symlink_to("not-mounted")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"checkpoints: (cannot be read|a link to not-mounted)"):
        loop.train(TOY, CONFIG, run, resume=True, quiet=True)
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["config.yaml", "facts.json"])
@pytest.mark.parametrize("wreck", [name for name in WRECKS if name != "a link"])
def test_a_wrecked_configuration_or_facts_is_one_line(run: Path, name: str, wreck: str) -> None:
    WRECKS[wreck](run / name)
    with pytest.raises(SensoriumError, match=name) as caught:
        session.open_run(TOY, run)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_facts_that_are_gone_are_not_taken_anew_beside_checkpoints(run: Path) -> None:
    (run / "facts.json").unlink()
    with pytest.raises(CheckpointError, match=r"facts\.json is gone; copy it back"):
        loop.train(TOY, CONFIG, run, resume=True, quiet=True)
    assert not (run / "facts.json").exists()
    shutil.rmtree(run / "checkpoints")  # killed before the first of them: nothing depends on the facts yet
    loop.train(TOY, CONFIG, run, resume=True, quiet=True)
    assert rundir.read_facts(run)["facts"] == {"length": 20}


def test_a_configuration_edited_on_purpose_says_so(run: Path) -> None:
    path = run / "config.yaml"
    text = path.read_text().replace("lr: 0.01", "lr: 0.02")
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"damaged, cut off or edited.*make its last line: # edited"):
        session.read_config(TOY, run)
    path.write_text(text + "# edited\n")
    assert session.read_config(TOY, run).optim.lr == 0.02
    path.write_text("".join(text.splitlines(keepends=True)[:-1]))  # cut off: the defaults would fill what is missing
    with pytest.raises(CheckpointError, match="cut off"):
        session.read_config(TOY, run)


@pytest.mark.parametrize("wreck", WRECKS)
def test_a_wrecked_log_or_result_stops_no_report(run: Path, whole: Path, wreck: str) -> None:
    shutil.copytree(whole / "evaluation", run / "evaluation")
    shutil.copy(whole / "summary.json", run)
    for name in ("metrics.jsonl", "times.jsonl", "summary.json", "environment.json", "evaluation/test.json"):
        WRECKS[wreck](run / name)
    assert report_data.load(run).run == run
    assert rundir.finished(run, STEPS) == (wreck in ("a link", "one byte short", "one byte longer"))


def test_numbers_beyond_all_numbers_stop_no_report(run: Path) -> None:
    huge = "1" + "0" * 400
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f'{{"kind": "train", "step": 6, "loss": {huge}}}\n')
    (run / "summary.json").write_text(f'{{"steps": "nan", "seconds": {{"train": "inf"}}, "best": {{"value": {huge}}}}}')
    assert write_report(run).exists()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f'{{"kind": "train", "step": {huge}}}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line \d+ is damaged \(no object with a step\)"):
        cut_back(run / "metrics.jsonl", 3)


@pytest.mark.parametrize("wreck", ["deleted", "empty", "cut", "a folder", "a FIFO", "nowhere", "deep", "no text"])
def test_a_wrecked_pt_file_is_one_line(best: Path, wreck: str) -> None:
    WRECKS[wreck](best)
    with pytest.raises(CheckpointError, match=r"best\.pt: ") as caught:
        portable.read_pt(best)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- going on


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a byte of the weights": lambda folder: next(flipped(folder / checkpoint.WEIGHTS, 1, 8)),
    "a space in the manifest": lambda folder: (folder / checkpoint.MANIFEST).write_bytes(
        (folder / checkpoint.MANIFEST).read_bytes().replace(b": ", b":\t", 1)
    ),
    "no state": lambda folder: (folder / checkpoint.STATE).unlink(),
    "a foreign state": lambda folder: forge_file(folder, checkpoint.STATE, state(of_a_future_version=1)),
    "a file in its place": FOLDERS["a file"][0],
    "a link in its place": FOLDERS["a link"][0],
    "a FIFO in its place": FOLDERS["a FIFO"][0],
    "a link to nowhere in its place": lambda folder: (shutil.rmtree(folder), folder.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_goes_on_from_the_older_one_and_ends_as_if_nothing_had_been(
    whole: Path, run: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[damage](newest_of(run))
    loop.train(TOY, CONFIG, run, resume=True)
    out = capsys.readouterr().out
    assert out.count("passed over: ") == 1
    assert f"Resumed at step {STEPS - 1} of {STEPS}" in out
    shutil.rmtree(run / f"checkpoints/real-{newest_of(run).name}", ignore_errors=True)  # what the link named
    assert_equal_runs(whole, run)
    assert usable(run) == (newest_of(run).name, [])


def contents(run: Path) -> dict[str, bytes | None]:
    found = {path for path in run.rglob("*") if path.name != ".lock"}  # names the process
    return {str(path.relative_to(run)): path.read_bytes() if path.is_file() else None for path in found}


def test_when_all_are_damaged_nothing_is_changed(run: Path) -> None:
    folders = checkpoint.named(run)
    for number, folder in enumerate(folders):
        list(DAMAGES.values())[number % 4](folder)
    before = contents(run)
    with pytest.raises(CheckpointError, match=f"none of its {len(folders)} checkpoints can be used"):
        loop.train(TOY, CONFIG, run, resume=True, quiet=True)
    with pytest.raises(CheckpointError, match="holds no checkpoint that can be used"):
        session.choose_checkpoint(run, "toy", "latest")
    assert contents(run) == before


def test_a_damaged_best_is_chosen_anew_while_there_is_time(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state_of = session.load(newest_of(run), "toy").state
    forge_file(newest_of(run), checkpoint.STATE, json.dumps({**state_of, "best": {"step": 4, "value": 0.0}}).encode())
    assert session.choose_checkpoint(run, "toy", "best").name == "step_00000004"
    next(flipped(checkpoint.folder_of(run, 4) / checkpoint.WEIGHTS, 1, 9))
    with pytest.raises(CheckpointError, match=r"step_00000004: task\.safetensors is damaged"):
        session.open_run(TOY, run, "best")
    longer = toy_config({"train": {"steps": STEPS + 2}, "checkpoint": {"every_steps": 1, "keep": KEPT}})
    assert loop.train(TOY, longer, run, resume=True) is not None
    said = capsys.readouterr().out
    assert "The best checkpoint so far, of step 4, cannot be used" in said
    assert "its checksum differs)): best is chosen anew" in said


def test_latest_says_what_it_passes_over(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    DAMAGES["no state"](newest_of(run))
    assert session.choose_checkpoint(run, "toy", "latest").name == "step_00000005"
    (record,) = caplog.records
    assert record.getMessage().startswith(f"passed over: {newest_of(run)}: state.json is missing")


@pytest.mark.parametrize("name", ["../elsewhere", "..", ".", "", "step_00000099", "step_00000006/../step_00000005"])
def test_a_name_is_one_of_the_runs_own_checkpoints(run: Path, name: str) -> None:
    shutil.copytree(newest_of(run), run / "elsewhere")
    with pytest.raises(CheckpointError, match=r"no checkpoint .*; there are: best, latest, step_00000003"):
        session.choose_checkpoint(run, "toy", name)
