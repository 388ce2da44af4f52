"""Sets of histories: windows, the published split and the honest one, what is dropped, the manifest, verification."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import history_trees
import pytest

from sensorium.data import histories, history_build, history_splits, manage, processed, readers
from sensorium.data.history_build import Choices, Raw, Step
from sensorium.data.items import SPLITS, DataSet, Item
from sensorium.data.readers import flickr_aes
from sensorium.data.tastes import Places, read_tastes
from sensorium.errors import DataError

Fake = tuple[int, int]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLICKR-AES in small; tests that change it take a copy."""
    return history_trees.flickr_aes(tmp_path_factory.mktemp("flickr"))


def fakes(sizes: Mapping[str, int]) -> dict[str, list[Fake]]:
    """Users with so many samples, each of which is (user, number)."""
    return {user: [(number, place) for place in range(size)] for number, (user, size) in enumerate(sizes.items())}


# --- splits ---


def test_the_published_counts() -> None:
    """Users by Python's generator with the published seed; the counts are written out here from the publication."""
    users = fakes({f"worker {number}": 40 + number for number in range(97)})
    found = history_splits.guide(users, 42)
    order = list(users)
    random.Random(42).shuffle(order)
    assert found["val"] == users[order[0]][:15]
    tests = int(96 * 0.15 / 0.95)
    assert tests == 15
    assert {user for user, _ in found["test"]} == {users[name][0][0] for name in order[-tests:]}
    assert found["train"] == [one for name in order[1:-tests] for one in users[name]]
    assert len(found["test"]) == sum(len(users[name]) for name in order[-tests:]) < 2000
    assert history_splits.guide(users, 43)["val"] != found["val"]


def test_the_published_validation_takes_user_by_user() -> None:
    users = fakes({f"user {number}": 4 for number in range(20)})
    found = history_splits.guide(users, 42)
    order = list(users)
    random.Random(42).shuffle(order)
    assert found["val"] == [one for name in order[:4] for one in users[name]][:15]
    left_out = {users[name][0][0] for name in order[:4]}
    assert not left_out & {user for split in ("train", "test") for user, _ in found[split]}


def test_the_published_test_is_balanced_and_ends_at_2000() -> None:
    users = fakes({f"user {number}": 900 if number % 3 else 30 for number in range(40)})
    found = history_splits.guide(users, 42)["test"]
    assert len(found) <= 2000
    counts = [sum(user == one for one, _ in found) for user in {user for user, _ in found}]
    tests = int(39 * 0.15 / 0.95)
    assert len(counts) == tests
    assert max(counts) <= 2000 // tests + 1
    assert len(set(found)) == len(found)
    many = history_splits.guide(fakes({f"user {number}": 900 for number in range(40)}), 42)["test"]
    assert len(many) == 2000 < tests * (2000 // tests + 1)


def test_the_published_split_of_themes_has_five_for_validation_and_no_cap() -> None:
    users = fakes({f"theme {number:04}": 3 for number in range(1000)})
    found = history_splits.guide(users, 42, "themes")
    order = sorted(users)
    random.Random(42).shuffle(order)
    assert [len({user for user, _ in found[split]}) for split in SPLITS] == [int(995 * 0.8 / 0.95), 5, 158]
    assert found["val"] == [one for name in order[:5] for one in users[name]]
    assert len(history_splits.guide(fakes({f"t{n}": 60 for n in range(400)}), 42, "themes")["test"]) > 2000


def pictures(one: Fake) -> Sequence[str]:
    """Four of 3,000: users share them."""
    user, place = one
    return [str((user * 131 + (place + step) * 7) % 3000) for step in range(4)]


def test_the_honest_split_shares_neither_users_nor_held_out_targets() -> None:
    users = fakes({f"worker {number}": 60 for number in range(120)})
    found, withheld = history_splits.honest(users, 42, pictures)
    of = {split: {user for user, _ in found[split]} for split in SPLITS}
    assert not of["train"] & of["val"]
    assert not (of["train"] | of["val"]) & of["test"]
    assert withheld > 100
    assert len(found["val"]) >= 200
    assert len(of["val"]) >= 10
    assert len(of["test"]) == 24
    assert max(len([one for one in found["test"] if one[0] == user]) for user in of["test"]) <= 300 // 24 + 1
    held = {pictures(one)[-1] for split in ("val", "test") for one in found[split]}
    assert not [one for one in found["train"] if held & set(pictures(one))]
    published = history_splits.guide(users, 42)
    held = {pictures(one)[-1] for split in ("val", "test") for one in published[split]}
    assert [one for one in published["train"] if held & set(pictures(one))]  # negative twin: the published one shares


def test_another_user_moves_none_of_the_honest_split() -> None:
    users = fakes({f"worker {number}": 60 for number in range(120)})
    before, _ = history_splits.honest(users, 42, pictures)
    after, _ = history_splits.honest(dict(reversed(users.items())), 42, pictures)
    assert {split: set(found) for split, found in before.items()} == {
        split: set(found) for split, found in after.items()
    }


# --- from choices to samples ---


def world(tmp_path: Path, users: Mapping[str, Sequence[str]], names: Sequence[str]) -> Raw:
    history_trees.write_pictures(tmp_path, [f"{name}.jpg" for name in names])
    there = history_build.pictures_in(tmp_path)
    captions = {item: f"a {item}" for items in users.values() for item in items}
    steps = {user: [Step(item) for item in items] for user, items in users.items()}
    return Raw("made", "free", tmp_path, 3, steps, there, captions, "here", {})


def test_windows_need_all_their_pictures(tmp_path: Path) -> None:
    items = [f"p{place}" for place in range(12)]
    raw = world(tmp_path, {f"u{n}": items for n in range(20)}, [name for name in items if name != "p5"])
    dataset, facts = history_build.compose(raw, Choices())
    assert facts["dropped"]["missing picture"] == 20 * 4
    targets = {one.target.meta["item"] for one in histories.samples(dataset)}
    assert targets == {"p3", "p4", "p9", "p10", "p11"}
    for one in histories.samples(dataset):  # no window is closed over the gap
        numbers = [int(item.meta["item"][1:]) for item in one.items]
        assert numbers == list(range(numbers[0], numbers[0] + 4))


def test_a_target_in_its_own_history_is_dropped_by_its_bytes(tmp_path: Path) -> None:
    items = [f"p{place}" for place in range(8)]
    users = {f"u{n}": [*items[:4], "p2", *items[4:]] for n in range(20)}
    raw = world(tmp_path, users, items)
    _, facts = history_build.compose(raw, Choices())
    assert facts["dropped"]["target in its own history"] == 20
    shutil.copy(tmp_path / "p6.jpg", tmp_path / "p7.jpg")  # the same picture under another name
    _, facts = history_build.compose(raw, Choices())
    assert facts["dropped"]["target in its own history"] == 40
    clean = replace(
        raw, users={user: [step for n, step in enumerate(steps) if n != 4] for user, steps in raw.users.items()}
    )
    assert history_build.compose(clean, Choices())[1]["dropped"]["target in its own history"] == 20  # p6, p7 alone


def test_pictures_without_caption_follow_the_policy(tmp_path: Path) -> None:
    items = [f"p{place}" for place in range(9)]
    raw = world(tmp_path, {f"u{n}": items for n in range(20)}, items)
    mute = replace(raw, captions={**raw.captions, "p8": ""})
    with pytest.raises(
        DataError, match=r"1 pictures have no caption in here \(first: p8\); complete them, or bad_samp"
    ):
        history_build.compose(mute, Choices())
    _, facts = history_build.compose(mute, Choices(bad_samples="skip"))
    assert facts["dropped"]["no caption"] == 20
    with pytest.raises(DataError, match=r"in here, 0 may be \(max_bad\)"):
        history_build.compose(mute, Choices(bad_samples="skip", max_bad=0))
    assert "no caption" not in history_build.compose(raw, Choices())[1]["dropped"]


def test_too_few_users_are_said(tmp_path: Path) -> None:
    items = [f"p{place}" for place in range(6)]
    with pytest.raises(DataError, match="1 users with samples are too few; train and test got none"):
        history_build.compose(world(tmp_path, {"u": items}, items), Choices())
    with pytest.raises(DataError, match=r"no sample has all its pictures \(3 have not"):
        history_build.compose(world(tmp_path / "none", {"u": items}, []), Choices())


# --- as a data set ---


def test_the_manifest_and_the_json_hold_the_same_samples(tree: Path, tmp_path: Path) -> None:
    options = flickr_aes.Options()
    raw = flickr_aes.gather(tree, options)
    dataset, facts = history_build.compose(raw, options)
    counts = processed.write_processed(dataset, facts, tmp_path / "json", "worker")
    assert counts == {split: facts["splits"][split]["samples"] for split in SPLITS}
    manage.import_dataset(dataset, tmp_path / "native")
    native = histories.tastes(readers.read("native", tmp_path / "native"))
    again = histories.tastes(readers.read("pmg_json", tmp_path / "json"))
    for split in SPLITS:
        wanted = read_tastes(tmp_path / "json" / f"{split}.json", Places())

        def told(tastes: Sequence[object]) -> list[object]:
            return [(t.user, [p.id for p in t.history], t.target.id, t.target.caption) for t in tastes]  # type: ignore[attr-defined]

        assert told(native[split]) == told(wanted)
        assert told(again[split]) == told(wanted)
    first = json.loads((tmp_path / "json" / "train.json").read_text())[0]
    assert first["target_item_info"].keys() == {"item_id", "caption", "image_path", "score", "aesthetic_score"}
    assert first["num_interactions"] == 3
    report = json.loads((tmp_path / "json" / "split_report.json").read_text())
    assert [report["splits"][split]["samples"] for split in SPLITS] == list(counts.values())
    assert report["sha256"]["val.json"] == hashlib.sha256((tmp_path / "json" / "val.json").read_bytes()).hexdigest()


def test_histories_of_any_length_survive_a_manifest(tmp_path: Path) -> None:
    """Processed samples need not have three pictures before the target, nor all as many."""
    names = [f"p{place}" for place in range(9)]
    history_trees.write_pictures(tmp_path / "pictures", [f"{name}.jpg" for name in names])

    def sample(user: str, chosen: Sequence[str]) -> dict[str, object]:
        infos = [{"item_id": n, "caption": n, "image_path": str(tmp_path / "pictures" / f"{n}.jpg")} for n in chosen]
        ids = [info["item_id"] for info in infos]
        told = {"history_item_ids": ids[:-1], "history_items_info": infos[:-1]}
        return {"user_id": user, **told, "target_item_id": ids[-1], "target_item_info": infos[-1]}

    samples = [sample("a", names[:3]), sample("a", names[2:5]), sample("b", names[4:9]), sample("b", names[5:7])]
    (tmp_path / "train.json").write_text(json.dumps(samples))
    dataset = readers.read("pmg_json", tmp_path)
    assert dataset.history == 2
    manage.import_dataset(dataset, tmp_path / "native")
    found = histories.tastes(readers.read("native", tmp_path / "native"))["train"]
    assert [[p.id for p in one.history] + [one.target.id] for one in found] == [
        names[:3], names[2:5], names[4:9], names[5:7],
    ]  # fmt: skip


def item(name: str, group: str, **more: object) -> Item:
    return Item(id=name, group=group, split="train", text=name, image=Path(f"/{name}.jpg"), **more)  # type: ignore[arg-type]


def test_time_orders_a_manifest_of_ones_own() -> None:
    shuffled = [item(f"{n}", "u", time=float(n)) for n in (3, 0, 4, 1, 2)]
    found = list(histories.samples(DataSet("x", Path("/"), "", tuple(shuffled))))
    assert [[one.id for one in sample.items] for sample in found] == [["0", "1", "2", "3"], ["1", "2", "3", "4"]]
    plain = [replace(one, time=None) for one in shuffled]
    found = list(histories.samples(DataSet("x", Path("/"), "", tuple(plain)), 4))
    assert [[one.id for one in sample.items] for sample in found] == [["3", "0", "4", "1", "2"]]
    wrong = [
        *shuffled,
        item("late", "u"),
        replace(item("bare", "v"), image=None),
        item("odd", "w", meta={"history": "7"}),
    ]
    with pytest.raises(DataError) as error:
        list(histories.samples(DataSet("x", Path("/d"), "", tuple(wrong))))
    lines = str(error.value).splitlines()
    assert lines[0] == "/d: 3 problems"
    assert sorted(lines[1:]) == [
        "  bare: has no picture",
        "  late: has no time, but others of its group 'u' have",
        "  odd: meta.history is '7'; 0 items of its group stand before it",
    ]
    with pytest.raises(DataError, match="no group has 4 items"):
        histories.tastes(DataSet("x", Path("/d"), "", tuple(shuffled[:3])))


# --- verification ---


def problems(dataset: DataSet) -> tuple[str, ...]:
    return manage.verify_dataset(dataset, decode=False).problems


def test_verification_finds_held_out_targets_in_training(tree: Path, tmp_path: Path) -> None:
    """The honest split passes, in every form; the published one does not, nor does an honest one that was changed."""
    options = flickr_aes.Options(split="honest")
    honest, facts = history_build.compose(flickr_aes.gather(tree, options), options)
    assert facts["dropped"]["holds a held-out target"] > 0
    assert facts["train_samples_with_held_out_target"] == 0
    assert problems(honest) == ()
    published = readers.read("flickr_aes", tree)
    assert any("samples of train hold a target of val or test" in one for one in problems(published))
    assert any("hold a target of val or test; split=honest" in note for note in published.notes)
    processed.write_processed(honest, facts, tmp_path, "worker")
    assert problems(readers.read("pmg_json", tmp_path)) == ()
    train, test = (json.loads((tmp_path / f"{split}.json").read_text()) for split in ("train", "test"))
    train[0]["history_items_info"][1] = test[0]["target_item_info"]
    train[0]["history_item_ids"][1] = test[0]["target_item_id"]
    (tmp_path / "train.json").write_text(json.dumps(train))
    found = problems(readers.read("pmg_json", tmp_path))
    assert any(one.startswith("1 samples of train hold a target of val or test (first: train/0/3)") for one in found)
    train[1]["worker_id"] = test[0]["worker_id"]
    (tmp_path / "train.json").write_text(json.dumps(train))
    assert any(
        f"group {test[0]['worker_id']!r} stands in" in one for one in problems(readers.read("pmg_json", tmp_path))
    )


def test_one_picture_under_two_names_is_one_held_out_target(tree: Path, tmp_path: Path) -> None:
    options = flickr_aes.Options(split="honest")
    honest, facts = history_build.compose(flickr_aes.gather(tree, options), options)
    processed.write_processed(honest, facts, tmp_path, "worker")
    train, test = (json.loads((tmp_path / f"{split}.json").read_text()) for split in ("train", "test"))
    copy = tmp_path / "copy.jpg"
    shutil.copy(test[0]["target_item_info"]["image_path"], copy)
    train[0]["target_item_info"] |= {"image_path": str(copy), "item_id": "another"}
    train[0]["target_item_id"] = "another"
    (tmp_path / "train.json").write_text(json.dumps(train))
    assert any("samples of train hold a target of" in one for one in problems(readers.read("pmg_json", tmp_path)))


def test_pairs_are_verified_as_before(tree: Path) -> None:
    """Without ``history`` a file in two splits is a problem; of histories users may share what is no target."""
    honest = readers.read("flickr_aes", tree, {"split": "honest"})
    assert any("the same file stands in" in one for one in problems(replace(honest, history=None)))
    assert problems(honest) == ()
