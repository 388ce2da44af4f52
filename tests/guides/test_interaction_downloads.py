"""Every promise of the interaction guide about downloads: the script's flags, exit codes and folders, on small sets
that a server of this machine publishes, cuts, forges and forgets."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import published_trees as trees
import pytest
import soundfile
from disks import Failing, on
from http_server import Fault, Page, Server, publish, serve
from packs import zipped
from published_archives import offer
from script_runs import Script, script_at

from sensorium.data import acquire, readers
from sensorium.data.catalog import CATALOGUE, GOALS

SCRIPT = Path(__file__).parents[2] / "examples" / "interaction" / "download_datasets.py"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as state:
        offer(state, tmp_path / "published", monkeypatch)
        yield state


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Runs the script as a command line does, in this process and a folder of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return script_at(SCRIPT, monkeypatch, capsys)


def test_the_three_sets_of_the_guide(server: Server, script: Script) -> None:
    """As the guide types it; the sound of AudioCaps is left to be done, so 3."""
    said = script("--datasets", "coco", "clotho", "audiocaps")
    assert said.code == 3, said
    assert said.err == ""
    assert sorted(path.name for path in Path("data").iterdir()) == ["audiocaps", "clotho", "coco"]
    assert len(readers.read("coco", Path("data/coco")).items) == 41
    assert len(readers.read("clotho", Path("data/clotho")).items) == 35
    lines = said.out.splitlines()
    assert "coco: complete, in data/coco" in lines
    assert "clotho: complete, in data/clotho" in lines
    assert any(
        line.startswith("left to do: audiocaps: 0 of 9 clips are there. The sound is not published.") for line in lines
    )
    assert "free in data" in said.out
    assert not list(Path("data").rglob("archives"))


def test_one_set_is_a_success(server: Server, script: Script) -> None:
    said = script("--datasets", "coco", "--data-root", "elsewhere/sets")
    assert (said.code, said.err) == (0, "")
    manifest = json.loads(Path("elsewhere/sets/coco/manifest.json").read_text())
    assert manifest["counts"] == {
        "train": {"items": 23, "groups": 4},
        "val": {"items": 6, "groups": 1},
        "test": {"items": 12, "groups": 2},
    }
    assert manifest["licence"].startswith("annotations: CC BY 4.0")
    first = manifest["files"][0]
    assert first["path"] == "annotations_trainval2017.zip"
    assert first["md5"] == CATALOGUE["coco"].files[0].md5
    assert (first["proof"], first["bytes"]) == ("md5 as published", CATALOGUE["coco"].files[0].size)


def test_all_does_what_it_can(server: Server, script: Script) -> None:
    said = script("--datasets", "all")
    assert said.code == 3
    assert sorted(path.name for path in Path("data").iterdir()) == ["audiocaps", "clotho", "coco", "esc50"]
    assert "esc50: complete, in data/esc50" in said.out
    assert "left to do: voxceleb: its authors give it to those who fill in their form. (1) Fill in" in said.out
    assert "biometric data of people" in said.out
    assert len(readers.read("esc50", Path("data/esc50")).items) == 5


def test_voxceleb_by_hand_is_complete(script: Script) -> None:
    """An empty folder is none, and neither is one with half of it."""
    Path("data/voxceleb").mkdir(parents=True)
    said = script("--datasets", "voxceleb")
    assert said.code == 3
    assert "left to do: VoxCeleb in data/voxceleb: vox1_meta.csv (or vox2_meta.csv) is missing" in said.out
    trees.voxceleb(Path("data/voxceleb"))
    said = script("--datasets", "voxceleb")
    assert (said.code, said.err) == (0, "")
    assert said.out.endswith("voxceleb: complete, in data/voxceleb\n")


def test_what_is_there_is_never_fetched_again(server: Server, script: Script) -> None:
    script("--datasets", "coco", "esc50")
    asked = len(server.asked)
    for words in ((), ("--skip-existing",), ("--verify",)):
        assert script("--datasets", "coco", "esc50", *words).code == 0
    assert len(server.asked) == asked
    picture = Path("data/coco/train2017/000000000009.jpg")
    picture.write_bytes(bytes(len(picture.read_bytes())))
    assert script("--datasets", "coco", "--skip-existing").code == 0  # by name and size
    for words in ((), ("--verify",)):
        said = script("--datasets", "coco", *words)
        assert said.code == 1
        assert f"error: coco: {picture}: changed since it was downloaded; move it away" in said.err
    picture.unlink()
    assert script("--datasets", "coco", "--verify").code == 1
    assert len(server.asked) == asked
    assert script("--datasets", "coco").code == 0
    assert len(server.asked) == asked + 1  # its archive alone


def test_what_was_put_there_is_skipped_on_request(server: Server, script: Script) -> None:
    """Trees that were imported, or copied from elsewhere."""
    trees.clotho(Path("data/clotho"))
    said = script("--datasets", "clotho", "--skip-existing")
    assert (said.code, server.asked) == (0, [])
    assert "clotho: can be read in data/clotho; taken as it is" in said.out
    Path("data/clotho/validation/val'idation.wav").unlink()
    assert script("--datasets", "clotho", "--skip-existing").code == 0
    assert len(server.asked) == 9


def test_verify_alone_finds_what_is_missing(script: Script, server: Server) -> None:
    said = script("--datasets", "esc50", "--verify")
    assert said.code == 1
    assert "error: esc50: ESC-50-master.zip is not there" in said.err
    assert not Path("data").exists()
    assert server.asked == []


def test_a_broken_connection_is_taken_up(server: Server, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorium.data.transfer._LONGEST_PAUSE", 0.01)
    server.pages["/train2017.zip"].faults = [Fault(cut=300), Fault(503), Fault(declare=10**6)]
    assert script("--datasets", "coco").code == 0
    ranges = [wanted for path, wanted, _ in server.asked if path == "/train2017.zip"]
    assert ranges[:3] == ["", "bytes=300-", "bytes=300-"]
    assert len(readers.read("coco", Path("data/coco")).items) == 41


def test_wrong_bytes_are_a_failure_and_the_rest_is_done(server: Server, script: Script) -> None:
    page = server.pages["/clotho_audio_validation.7z"]
    page.body = page.body[:-1] + bytes([page.body[-1] ^ 1])
    server.pages.pop("/coco_karpathy_val.json")
    said = script("--datasets", "coco", "clotho", "esc50")
    assert said.code == 1
    assert "esc50: complete" in said.out
    lines = said.err.splitlines()
    assert len(lines) == 2
    assert "coco_karpathy_val.json: the server answers 404: it is not there" in lines[0]
    assert "clotho_audio_validation.7z: the md5 is" in lines[1]
    assert "set aside as data/clotho/archives/clotho_audio_validation.7z.bad" in lines[1]
    assert not Path("data/clotho/validation").exists()
    assert not Path("data/clotho/manifest.json").exists()


def test_what_its_reader_cannot_read_is_no_success(
    server: Server, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte as published, and yet a sound is missing."""
    source = CATALOGUE["esc50"]
    tree = {"ESC-50-master/meta/esc50.csv": b"filename,fold,target,category\n1.wav,1,0,dog\n2.wav,1,0,dog\n"}
    content = zipped(tree | {"ESC-50-master/audio/1.wav": b"x", "ESC-50-master/LICENSE": b"CC"})
    files = (publish(server, source.files[0], content),)
    monkeypatch.setitem(CATALOGUE, "esc50", replace(source, files=files))
    said = script("--datasets", "esc50")
    assert said.code == 1
    assert said.err.startswith("error: data/esc50/ESC-50-master/meta/esc50.csv: line 3: 2.wav is missing in")
    assert not Path("data/esc50/manifest.json").exists()


def test_a_disk_that_fills_up_is_told_apart_from_work_by_hand(server: Server, script: Script) -> None:
    with on(Failing(errno.ENOSPC, ("write",), Path("data"))):
        said = script("--datasets", "esc50")
    assert said.code == 2
    assert "No space left" in said.err
    assert script("--datasets", "esc50").code == 0


def test_archives_that_are_there_already_are_taken(server: Server, script: Script, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    for remote in (*CATALOGUE["coco"].files, *CATALOGUE["coco-karpathy"].files):
        (copies / remote.name).write_bytes(server.pages[f"/{remote.name}"].body)
    assert script("--datasets", "coco", "--from", str(copies)).code == 0
    assert server.asked == []
    (copies / "val2017.zip").write_bytes(b"other")
    said = script("--datasets", "coco", "--from", str(copies), "--data-root", "again")
    assert said.code == 1
    assert "val2017.zip: has 5 bytes" in said.err


def test_a_disk_that_is_too_small_is_found_before_the_first_byte(
    server: Server, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each set would fit, not both."""
    plan = [(CATALOGUE[name], Path("data") / name) for name in ("coco", "esc50")]
    needed = [acquire.needed_space(acquire.jobs([source], root), root, acquire.Choices()) for source, root in plan]
    monkeypatch.setattr(acquire, "free_space", lambda root: max(needed) + 1000)
    said = script("--datasets", "coco", "esc50")
    assert said.code == 2
    assert "are needed on its disk" in said.err
    assert len(said.err.splitlines()) == 1
    assert (server.asked, Path("data").exists()) == ([], False)


@pytest.mark.parametrize(("answer", "words", "code"), [("n", (), 3), ("y", (), 0), (None, ("--yes",), 0)])
def test_who_sits_there_is_asked_once_about_much(
    server: Server,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    answer: str | None,
    words: tuple[str, ...],
    code: int,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal(f"{answer}\n")
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr("sensorium.downloads._ASKED", 1000)
    said = script("--datasets", "esc50", *words)
    assert said.code == code, said
    assert ("[y/N]" in said.out) == (answer is not None)
    assert (terminal.read() == "") == (answer is not None)
    assert Path("data/esc50").exists() == (code == 0)
    monkeypatch.setattr("sensorium.downloads._ASKED", 10**9)
    assert "[y/N]" not in script("--datasets", "esc50", "--data-root", "other").out


YT_DLP = """#!/bin/sh
for word; do
  case "$before" in --output) out=$(echo "$word" | sed 's/%(ext)s/wav/') ;; esac
  before=$word
done
case "$word" in
  *9abcdefghij) echo "ERROR: Private video" >&2; exit 1 ;;
  *) cp "$SOUND" "$out" ;;
esac
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("yt-dlp", YT_DLP), ("ffmpeg", "#!/bin/sh\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    soundfile.write(folder / "sound.wav", np.full(64_000, 0.1), 32_000)
    monkeypatch.setenv("SOUND", str(folder / "sound.wav"))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_sound_of_audiocaps_on_request(server: Server, script: Script, tools: None) -> None:
    said = script("--datasets", "audiocaps", "--audio", "--limit", "1")
    assert (said.code, said.err) == (0, ""), said
    assert "audiocaps clips: of 3 0 were there, 3 came, 0 are gone for ever" in said.out
    said = script("--datasets", "audiocaps", "--audio")
    assert said.code == 3
    assert "audiocaps clips: of 9 3 were there, 5 came, 1 are gone for ever" in said.out
    assert "left to do: audiocaps: 8 of 9 clips are there; clips-gone.tsv says which are gone for ever" in said.out
    notes = readers.read("audiocaps", Path("data/audiocaps")).notes
    assert "AudioCaps: test: 1 of 2 clips are there, 1 are missing (first: 9abcdefghij_30)" in notes
    counts = json.loads(Path("data/audiocaps/manifest.json").read_text())["counts"]
    assert {split: count["groups"] for split, count in counts.items()} == {"train": 5, "val": 2, "test": 1}


def test_a_missing_program_is_said_before_anything_comes(
    server: Server, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path.cwd()))
    said = script("--datasets", "audiocaps", "--audio")
    assert (said.code, server.asked, Path("data").exists()) == (2, [], False)
    assert "--audio needs yt-dlp and ffmpeg" in said.err
    monkeypatch.setitem(sys.modules, "py7zr", None)
    said = script("--datasets", "coco", "clotho")
    assert (said.code, server.asked, Path("data").exists()) == (2, [], False)
    assert "pip install 'sensorium[downloads]'" in said.err


def test_the_list_shows_everything_and_does_nothing(server: Server, script: Script) -> None:
    said = script("--list")
    assert (said.code, said.err, server.asked, Path("data").exists()) == (0, "", [], False)
    for name in GOALS:
        assert name in said.out
    for part in ("automatic", "manual", "sound by --audio, 43 GB", "6 of 6 files", "CC BY 4.0", "are free in data"):
        assert part in said.out
    sizes = sum(remote.size or 0 for remote in CATALOGUE["audiocaps"].files)
    row = next(line for line in said.out.splitlines() if line.startswith("audiocaps"))
    assert row.split()[1] == f"{sizes:,}"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "--datasets is missing: name coco, clotho, audiocaps, voxceleb, esc50 or all; --list shows them"),
        (("--datasets", "coca"), "no data set 'coca'; there are coco, clotho, audiocaps, voxceleb, esc50, all"),
        (("--dataset", "coco"), "--dataset: unknown flag; did you mean --datasets?"),
        (("--datasets", "coco", "--from", "nowhere"), "--from nowhere: no such folder"),
        (("--datasets", "audiocaps", "--audio", "--limit", "0"), "--limit 0: at least 1"),
        (("--datasets", "coco", "--limit", "3"), "--limit and --cookies are for the clips of AudioCaps; give --audio"),
        (("--datasets", "audiocaps", "--audio", "--cookies", "x"), "--cookies x: no such file"),
    ],
)
def test_a_wrong_flag_is_one_line(script: Script, words: tuple[str, ...], reason: str) -> None:
    said = script(*words)
    assert said.code == 2
    assert said.err.startswith(f"error: {reason}")
    assert len(said.err.splitlines()) == 1
    assert not Path("data").exists()


def test_modules_beside_the_script_are_not_taken_for_packages(tmp_path: Path) -> None:
    """The guide has a ``datasets.py`` and a ``model.py`` there: whoever imports packages of these names gets those."""
    folder = tmp_path / "a guide"
    folder.mkdir()
    shutil.copy(SCRIPT, folder)
    for name in ("datasets", "model", "numpy"):
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    command = [sys.executable, str(folder / SCRIPT.name), "--list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "are free in data" in done.stdout
    text = (folder / SCRIPT.name).read_text().replace("guide.off_the_path(__file__)\n", "")  # the twin
    (folder / SCRIPT.name).write_text(text)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "the wrong module" in done.stderr


def test_the_command_line_knows_all_too(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sensorium import cli

    monkeypatch.setattr(sys, "argv", ["sensorium", "data", "download", "all", "--root", str(tmp_path / "all"), "--yes"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 3
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["audiocaps", "clotho", "coco", "esc50"]
    server.pages["/ESC-50-master.zip"] = Page(b"other")
    monkeypatch.setattr(sys, "argv", ["sensorium", "data", "download", "esc50", "--root", str(tmp_path / "x"), "--yes"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
