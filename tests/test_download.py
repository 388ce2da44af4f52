"""`sensorium data download`: the tree of the guide, questions, exit codes; the catalogue behind it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from http_server import Fault, Server, publish, serve
from packs import tarred, zipped
from PIL import Image

from sensorium import cli
from sensorium.data import acquire, catalog, readers
from sensorium.data.catalog import CATALOGUE
from sensorium.errors import ConfigError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as state:
        yield state


def files(root: Path) -> set[str]:
    """What the user sees: all files but the manifest."""
    found = (path for path in root.rglob("*") if path.is_file() and path.name != acquire.MANIFEST)
    return {str(path.relative_to(root)) for path in found}


@pytest.fixture
def flickr8k(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """``flickr8k`` and ``facc`` of the catalogue, from this machine: four pictures, packed as they are published."""
    names, captions, sounds = [f"{number}_ab.jpg" for number in range(4)], [], {}
    pictures, links, speakers = {"Flicker8k_Dataset/": b"", "__MACOSX/Flicker8k_Dataset/._0_ab.jpg": b"x"}, [], []
    for number, name in enumerate(names):
        picture, sound = io.BytesIO(), io.BytesIO()
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(picture, "JPEG")
        soundfile.write(sound, np.full(160, 0.1 + number / 10), 16000, format="WAV")
        pictures[f"Flicker8k_Dataset/{name}"] = picture.getvalue()
        sounds[f"flickr_audio/wavs/{number}_0.wav"] = sound.getvalue()
        captions += [f"{name}#{k}\tcaption {k} of {number} ." for k in range(5)]
        links.append(f"{number}_0.wav {name} #0")
        speakers.append(f"{number}_0.wav {number}")
    lists = {f"Flickr_8k.{w}Images.txt": n for w, n in zip(("train", "dev", "test"), ("0 1", "2", "3"), strict=True)}
    texts = {name: "".join(f"{number}_ab.jpg\r\n" for number in numbers.split()) for name, numbers in lists.items()}
    texts |= {"Flickr8k.token.txt": "\n".join(captions), "readme.txt": "read me", "ExpertAnnotations.txt": "x"}
    sounds["flickr_audio/wav2capt.txt"] = "\n".join(links).encode()
    sounds["flickr_audio/wav2spk.txt"] = "\n".join(speakers).encode()
    content = {
        "Flickr8k_Dataset.zip": zipped(pictures),
        "Flickr8k_text.zip": zipped({name: text.encode() for name, text in texts.items()}),
        "flickr_audio.tar.gz": tarred(sounds | {"flickr_audio/readme": b"read me"}),
    }
    for name in ("flickr8k", "facc"):
        files = tuple(publish(server, remote, content[remote.name]) for remote in CATALOGUE[name].files)
        monkeypatch.setitem(CATALOGUE, name, replace(CATALOGUE[name], files=files))


@pytest.fixture
def sensorium(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a command line; its exit code and all that it printed."""

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sensorium", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out + said.err

    return call


def test_the_command_yields_the_tree_of_the_guide(
    flickr8k: None, sensorium: Callable[..., tuple[int, str]], tmp_path: Path, server: Server
) -> None:
    del flickr8k
    root = tmp_path / "data" / "flickr8k"
    command = ("data", "download", "flickr8k", "facc", "--root", str(root))
    code, said = sensorium(*command)
    assert (code, server.asked, root.exists()) == (2, [], False)
    assert "error: nobody is there to be asked; nothing was downloaded. Add --yes" in said
    code, said = sensorium(*command, "--dry-run")
    assert (code, server.asked, root.exists()) == (0, [], False)
    for part in (
        "licence: CC BY-SA",
        "licence: research, not commercial",
        "flickr_audio.tar.gz",
        "3 files, ",
        "are free",
    ):
        assert part in said
    assert sensorium(*command, "--yes")[0] == 0
    lists = [f"Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test")]
    assert files(root) == {
        *(f"Flicker8k_Dataset/{number}_ab.jpg" for number in range(4)),
        *(f"flickr_audio/wavs/{number}_0.wav" for number in range(4)),
        *("Flickr8k.token.txt", "flickr_audio/wav2capt.txt", "flickr_audio/wav2spk.txt", *lists),
    }
    code, said = sensorium(*command)
    assert code == 0
    assert said.endswith(f"flickr8k, facc: complete, in {root}\n")
    assert len(server.asked) == 3
    dataset = readers.read("flickr8k", root)
    assert sum(item.audio is not None for item in dataset.items) == 4
    code, said = sensorium("data", "verify", "flickr8k", "--root", str(root))
    assert code == 0
    assert "20 usable captions" in said
    assert "4 recordings, 4 of them joined" in said
    assert said.endswith("no overlap of the splits, no problem found\n")


def test_the_command_says_what_failed(
    flickr8k: None, sensorium: Callable[..., tuple[int, str]], tmp_path: Path, server: Server
) -> None:
    del flickr8k
    server.pages["/Flickr8k_text.zip"].faults = [Fault(403)]
    code, said = sensorium("data", "download", "flickr8k", "voxceleb", "--root", str(tmp_path / "x"), "--yes")
    assert code == 1
    assert "left to do: voxceleb: its authors give it to those who fill in their form" in said
    assert "error: flickr8k: http://127.0.0.1" in said
    assert "answers 403: it is forbidden" in said
    assert len(files(tmp_path / "x")) == 4
    code, said = sensorium("data", "download", "voxceleb", "--root", str(tmp_path / "y"))
    assert code == 3
    assert "biometric data of people" in said
    assert not (tmp_path / "y").exists()
    assert sensorium("data", "download", "nope", "--root", "x")[1].startswith("error: no data set 'nope' to download")
    assert "no such folder" in sensorium("data", "download", "coco", "--root", "x", "--from", str(tmp_path / "y"))[1]


def test_the_list_shows_sizes_and_licences(sensorium: Callable[..., tuple[int, str]]) -> None:
    code, said = sensorium("data", "list")
    assert code == 0
    for part in ("train2017.zip                    19.3 GB\n", "about 4.2 GB", "no checksum published", "CC BY-SA"):
        assert part in said


def test_the_catalogue_is_sound() -> None:
    for name, source in CATALOGUE.items():
        assert source.name == name
        assert source.licence
        assert bool(source.files) is not bool(source.manual) or name == "audiocaps"  # its lists alone are published
    files = [remote for source in CATALOGUE.values() for remote in source.files]
    assert len({remote.name for remote in files}) == len(files)
    for remote in files:
        assert remote.url.endswith((f"/{remote.name}", "/master.zip"))
        assert remote.url.startswith("https://") or remote.md5
        assert remote.md5 is None or (len(remote.md5) == 32 and int(remote.md5, 16))
    assert [source.name for source in catalog.find(["facc", "flickr8k", "facc"])] == ["facc", "flickr8k"]
    with pytest.raises(ConfigError, match="there are flickr8k, facc, coco"):
        catalog.find(["facc", "nope"])
