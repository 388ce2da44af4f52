"""Captions by a local model: each picture once, whatever its name and however often a run is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import history_trees
import pytest
from captioner_folder import write_blip

from sensorium.data.feature_fill import FillOptions
from sensorium.errors import ConfigError, DataError
from sensorium.families.pmg import captioner as captioning
from sensorium.families.pmg.captioner import Captioner, captions


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip(tmp_path_factory.mktemp("captioner") / "blip")


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    names = [f"p{number}.jpg" for number in range(0, 3000, 125)]
    history_trees.write_pictures(tmp_path / "pictures", names)
    for number, name in enumerate(names):
        (tmp_path / "pictures" / name).write_bytes(history_trees.picture(2611 * number))
    return {name: tmp_path / "pictures" / name for name in names}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many pictures the model was given, pass by pass."""
    counts: list[int] = []
    before = Captioner.encode

    def counting(self: Captioner, prepared: list[object]) -> object:
        counts.append(len(prepared))
        return before(self, prepared)

    monkeypatch.setattr(Captioner, "encode", counting)
    return counts


def test_each_picture_is_captioned_once(blip: Path, pictures: dict[str, Path], seen: list[int]) -> None:
    found, broken = captions(pictures, Captioner(blip, "cpu"), FillOptions())
    assert found.keys() == pictures.keys()
    assert not broken
    assert sum(seen) == 24
    assert len(set(found.values())) >= 3
    assert all(set(text.split()) <= {*words_of(blip)} for text in found.values())
    again, _ = captions(
        {f"other {name}": path for name, path in pictures.items()}, Captioner(blip, "cpu"), FillOptions()
    )
    assert list(again.values()) == list(found.values())
    assert sum(seen) == 24  # none was seen again
    name = next(iter(pictures))
    pictures[name].write_bytes(history_trees.picture(99_999))
    captions(pictures, Captioner(blip, "cpu"), FillOptions())
    assert sum(seen) == 25  # a changed picture is another one
    alone, _ = captions({"one": pictures["p125.jpg"]}, Captioner(blip, "cpu"), FillOptions())
    assert alone["one"] == found["p125.jpg"]


def words_of(folder: Path) -> list[str]:
    return (folder / "vocab.txt").read_text().split()


def test_another_captioner_has_captions_of_its_own(
    blip: Path, pictures: dict[str, Path], seen: list[int], tmp_path: Path
) -> None:
    other = write_blip(tmp_path / "blip", seed=1)
    first, _ = captions(pictures, Captioner(blip, "cpu"), FillOptions())
    second, _ = captions(pictures, Captioner(other, "cpu"), FillOptions())
    assert first != second
    assert Captioner(blip, "cpu").digest != Captioner(other, "cpu").digest
    assert Captioner(blip, "cpu").name == Captioner(other, "cpu").name == "captions of blip"
    assert sum(seen) == 48


def test_a_killed_run_goes_on(blip: Path, pictures: dict[str, Path], seen: list[int]) -> None:
    """Killed outright after the second shard: what was written is there, the rest is made, and all is as in one go."""
    options = FillOptions(shard_entries=4, workers=1)
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            passes = 0
            whole = Captioner._captions

            def slow(self: Captioner, images: list[object]) -> list[str]:
                nonlocal passes
                passes += 1
                if passes == 4:
                    os.kill(os.getpid(), signal.SIGKILL)
                    time.sleep(60)
                return whole(self, images)  # type: ignore[arg-type]

            Captioner._captions = slow  # type: ignore[method-assign, assignment]
            captions(pictures, Captioner(blip, "cpu"), options)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    found, _ = captions(pictures, Captioner(blip, "cpu"), options)
    assert 0 < sum(seen) < 24
    assert len(found) == 24


def test_a_broken_picture_follows_the_policy(blip: Path, pictures: dict[str, Path]) -> None:
    broken = pictures["p250.jpg"]
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(DataError, match=r"p250\.jpg: "):
        captions(pictures, Captioner(blip, "cpu"), FillOptions())
    pictures["p375.jpg"].unlink()
    found, reasons = captions(pictures, Captioner(blip, "cpu"), FillOptions(policy="skip"))
    assert found.keys() == pictures.keys() - {"p250.jpg", "p375.jpg"}
    assert sorted(Path(reason.partition(": ")[0]).name for reason in reasons) == ["p250.jpg", "p375.jpg"]


def test_what_is_no_captioner_is_said(blip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none: no config\.json; expected the folder of an image-to-text model"):
        Captioner(tmp_path / "none", "cpu")
    lame = write_blip(tmp_path / "lame")
    (lame / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="its picture processor or tokenizer cannot be loaded"):
        captioning.open_parts(lame, "cpu")
    (lame / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match=r"captioner lame: .* cannot be loaded"):
        captioning.open_parts(lame, "cpu")
    (lame / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds no weights"):
        _ = Captioner(lame, "cpu").digest
