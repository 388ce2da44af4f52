"""FLICKR-AES, POG and SER30K in the layout of their publishers: what is read, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import history_trees
import pytest

from sensorium.data import histories, readers
from sensorium.data.captions import read_captions
from sensorium.data.items import SPLITS, DataSet
from sensorium.data.readers import flickr_aes, pog, ser30k
from sensorium.errors import ConfigError, DataError

RATINGS = "FLICKR-AES_image_labeled_by_each_worker.csv"


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    return history_trees.flickr_aes(tmp_path / "flickr", workers=24, pictures=60, liked=8)


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    root = history_trees.pog(tmp_path / "pog")
    history_trees.write_pictures(root / "images", [f"{place:032x}.jpg" for place in range(150)])
    return root


def rewritten(path: Path, old: str, new: str, count: int = 1) -> Path:
    text = path.read_text(encoding="utf-8-sig")
    assert old in text
    path.write_text(text.replace(old, new, count), encoding="utf-8")
    return path


def told(dataset: DataSet) -> list[tuple[str, ...]]:
    return [
        (one.target.split, one.target.group, *(item.meta["item"] for item in one.items))
        for one in histories.samples(dataset)
    ]


# --- FLICKR-AES ---


def test_flickr_aes_is_read_as_published(flickr: Path) -> None:
    """A blank in the header, a byte order mark, accents, and only what was rated above 2, in the order of the lines."""
    assert (flickr / RATINGS).read_bytes().startswith(b"\xef\xbb\xbfworker, imagePair,score\r\n")
    found = readers.read("flickr_aes", flickr)
    rows = [line.split(",") for line in (flickr / RATINGS).read_text(encoding="utf-8-sig").splitlines()[1:]]
    for user in {item.group for item in found.items}:
        liked = [name.removesuffix(".jpg") for worker, name, score in rows if worker == user and int(score) > 2]
        for split, _, *items in (one for one in told(found) if one[1] == user):
            at = liked.index(items[0])
            assert liked[at : at + 4] == items
            assert split in SPLITS
    assert all(item.group.endswith("WÉRK") for item in found.items)
    assert found.items[0].meta.keys() >= {"item", "score", "aesthetic"}
    assert found.items[0].text is not None
    assert found.items[0].text.startswith("a")
    eager = readers.read("flickr_aes", flickr, {"above": 0})
    assert {int(item.meta["score"]) for item in eager.items} > {3, 4, 5}  # negative twin: the others are there


@pytest.mark.parametrize(
    "header", ["worker,imagePair,score", '"worker"," imagePair "," score"', " worker ,imagePair,score"]
)
def test_odd_headers_of_flickr_aes_are_the_same(flickr: Path, header: str) -> None:
    before = told(readers.read("flickr_aes", flickr))
    rewritten(flickr / RATINGS, "worker, imagePair,score", header)
    assert told(readers.read("flickr_aes", flickr)) == before


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("worker, imagePair,score", "wörker, imagePair,score", "line 1: expected the columns worker, imagePair, score"),
        ("worker, imagePair,score", "worker,score", "line 1: expected the columns"),
        (".jpg,4", ".jpg,9", r"line \d+: expected a worker, a picture and 1 to 5 \(found"),
        (".jpg,4", ".jpg,4,4", r"line \d+: expected 3 fields \(found 4"),
        ("A000WÉRK,farm1", ",farm1", "line 2: expected a worker, a picture"),
    ],
)
def test_damaged_ratings_of_flickr_aes_name_their_line(flickr: Path, old: str, new: str, reason: str) -> None:
    rewritten(flickr / RATINGS, old, new)
    with pytest.raises(DataError, match=rf"{RATINGS}: {reason}"):
        readers.read("flickr_aes", flickr)


def test_what_flickr_aes_lacks_is_said(flickr: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="FLICKR-AES comes from"):
        readers.read("flickr_aes", tmp_path / "none")
    (flickr / "FLICKR_captions.json").rename(tmp_path / "mine.json")
    with pytest.raises(DataError, match=r"there are no captions.*captions=FILE.*--captioner FOLDER"):
        readers.read("flickr_aes", flickr)
    assert readers.read("flickr_aes", flickr, {"captions": str(tmp_path / "mine.json")}).items
    rewritten(flickr / "FLICKR-AES_image_score.txt", " 0.", " zero.")
    with pytest.raises(DataError, match=r"image_score.txt: line 1: expected NAME and a mean rating"):
        readers.read("flickr_aes", flickr, {"captions": str(tmp_path / "mine.json")})
    (flickr / "40K").rename(tmp_path / "gone")
    with pytest.raises(DataError, match="40K is missing"):
        readers.read("flickr_aes", flickr)
    with pytest.raises(ConfigError, match="honest"):
        readers.read("flickr_aes", flickr, {"split": "fair"})


def test_captions_are_texts_or_objects(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"a": "a  red\nboat", "t/b.jpg": {"caption": "a dog", "model": "x"}, "c": " "}))
    assert read_captions(path) == {"a": "a red boat", "t/b.jpg": "a dog"}
    path.write_text(json.dumps({"a": 1, "b": {"text": "x"}, "c": "good"}))
    with pytest.raises(DataError, match=r"(?s)captions.json: 2 problems\n  a: expected a text.*\n  b: expected"):
        read_captions(path)
    path.write_text('{"a": "x", "a": "y"}')
    with pytest.raises(DataError, match="key 'a' is given twice"):
        read_captions(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="expected an object from id to caption"):
        read_captions(path)


# --- POG ---


def test_pog_is_read_as_published(clicks: Path) -> None:
    """Titles with commas are the captions; a user's windows go through what they clicked, in its order."""
    found = readers.read("pog", clicks)
    rows = {
        line.split(",")[0]: line.split(",")[1].split(";") for line in (clicks / "user_data.txt").read_text().split()
    }
    for _, user, *items in told(found):
        at = rows[user].index(items[0])
        assert rows[user][at : at + 4] == items
    assert {item.text for item in found.items} >= {"连衣裙 3, 夏"}
    (clicks / "captions_sampled.json").write_text(json.dumps({f"{n:032x}": f"dress {n}" for n in range(150)}))
    assert all((item.text or "").startswith("dress") for item in readers.read("pog", clicks).items)


def test_the_outfit_is_foretold_from_the_last_clicks(clicks: Path) -> None:
    found = readers.read("pog", clicks, {"target": "outfit"})
    assert found.history == 5
    lines = [line.split(",") for line in (clicks / "user_data.txt").read_text().split()]
    outfits = dict(line.split(",") for line in (clicks / "outfit_data.txt").read_text().split())
    of = {user: (items.split(";"), outfits[outfit].split(";")) for user, items, outfit in lines}
    samples = told(found)
    assert len({user for _, user, *_ in samples}) == len(samples)
    for _, user, *items in samples:
        assert items[:5] == of[user][0][-5:]
        assert items[5] in of[user][1]


def test_users_of_pog_are_drawn_by_the_seed_alone(clicks: Path) -> None:
    def users(**options: object) -> list[str]:
        return list(pog.clicked(clicks, pog.Options(**options)))  # type: ignore[arg-type]

    chosen = users(users=20)
    assert len(chosen) == 20
    assert users(users=20, seed=1) != chosen
    lines = (clicks / "user_data.txt").read_text().splitlines()
    (clicks / "user_data.txt").write_text("\n".join(reversed(lines)) + "\n")
    assert users(users=20) == chosen[::-1]
    assert set(chosen) < set(users(users=30)) < set(users())
    user = chosen[0]
    (clicks / "user_data.txt").write_text("\n".join([*lines, f"{user},{';'.join(f'{n:032x}' for n in range(5))},o"]))
    last = pog.clicked(clicks, pog.Options(users=20))[user]
    assert [step.item for step in last] == [f"{n:032x}" for n in range(5)]  # of two lines of a user, the last


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("user_data.txt", lambda text: "u;1;2\n" + text, "line 1: expected 3 fields .*it is not Polyvore"),
        ("user_data.txt", lambda text: "u, ;,o\n" + text, "line 1: expected items with ;"),
        ("item_data.txt", lambda text: text.replace(",", ";", 3), "line 1: expected 4 fields"),
        ("user_data.txt", None, "cannot be read .No such file"),
        ("images", None, r"images is missing; .*--download fetches"),
    ],
)
def test_damaged_files_of_pog_name_their_line(
    clicks: Path, name: str, change: Callable[[str], str] | None, reason: str
) -> None:
    if change is None:
        (clicks / name).rename(clicks / "elsewhere")
    else:
        (clicks / name).write_text(change((clicks / name).read_text()))
    with pytest.raises(DataError, match=reason):
        readers.read("pog", clicks)


# --- SER30K ---


def test_ser30k_is_drawn_as_published(tmp_path: Path) -> None:
    """The published script's own order of draws, written out once more."""
    root = history_trees.ser30k(tmp_path / "ser")
    raw = ser30k.gather(root, ser30k.Options())
    names = sorted(folder.name for folder in (root / "Images").iterdir())
    stickers = {name: sorted(path.name for path in (root / "Images" / name).iterdir()) for name in names}
    numbers = random.Random(42)
    for theme in names:
        wanted = []
        for _ in range(3):
            wanted += [f"{theme}/{name}" for name in numbers.sample(stickers[theme], 3)]
            other = numbers.choice([name for name in names if name != theme])
            wanted.append(f"{other}/{numbers.choice(stickers[other])}")
        assert [step.item for step in raw.users[theme]] == wanted
    found = readers.read("ser30k", root)
    sizes = {split: len(found.of_split(split)) / 4 for split in SPLITS}
    assert sizes == {"train": 3 * 16, "val": 15, "test": 3 * 3}
    assert any("a history says nothing" in note for note in found.notes)
    assert {item.meta["emotion"] for item in found.items} <= set("1234567")


def test_targets_of_the_same_theme_are_not_in_the_history(tmp_path: Path) -> None:
    root = history_trees.ser30k(tmp_path / "ser")
    found = readers.read("ser30k", root, {"split": "honest"})
    assert not any("own history" in note for note in found.notes)  # none had to be dropped
    for _, user, *items in told(found):
        assert len(set(items)) == 4
        assert {item.rpartition("/")[0] for item in items} == {user}
    others = [one for one in told(readers.read("ser30k", root)) if one[-1].rpartition("/")[0] != one[1]]
    assert len(others) == 72  # negative twin: as published, every target is a stranger


def test_what_ser30k_lacks_is_said(tmp_path: Path) -> None:
    root = history_trees.ser30k(tmp_path / "ser", themes=3)
    rewritten(root / "Annotations" / "image-level" / "train.json", '"anno": 1', '"anno": 8')
    with pytest.raises(DataError, match=r"train.json: annotations\[0\].anno: expected 1 to 7 \(found 8\)"):
        readers.read("ser30k", root)
    rewritten(root / "Annotations" / "image-level" / "train.json", '"topic"', '"theme"')
    with pytest.raises(DataError, match="topic: expected a text"):
        readers.read("ser30k", root)
    with pytest.raises(DataError, match="0 themes have 9 stickers or more; two are needed"):
        readers.read("ser30k", root, {"history": 9})
    (root / "Images").rename(root / "images")
    with pytest.raises(DataError, match="the folder Images is missing"):
        readers.read("ser30k", root)
    assert flickr_aes.Options().split == "guide"
