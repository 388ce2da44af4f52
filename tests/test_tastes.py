"""Details of the processed samples and of preferences that their errors name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sensorium.data.tastes import Places, read_styles, read_tastes
from sensorium.errors import DataError


def sample(**changes: Any) -> dict[str, Any]:
    def info(name: str) -> dict[str, Any]:
        return {"item_id": name, "caption": f"a {name}", "image_path": f"{name}.jpg"}

    told = {"history_item_ids": ["a"], "history_items_info": [info("a")]}
    return {"user_id": 7, **told, "target_item_id": "b", "target_item_info": info("b"), **changes}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_optional_keys_are_checked_too(tmp_path: Path) -> None:
    good = {"score": 4, "aesthetic_score": 0.5, "item_id": "b", "caption": "b", "image_path": "b.jpg"}
    right = sample(num_interactions=1, window_position=0, sample_index=2, worker_style="calm ", target_item_info=good)
    assert read_tastes(written(tmp_path / "s.json", [right]), Places())[0].style == "calm"
    wrong = [
        sample(user_style="x", worker_style="y"),
        sample(worker_style=3),
        sample(window_position="first", total_sequence_length=1.5),
        sample(target_item_info={**good, "score": "4", "aesthetic_score": True, "colour": "red"}),
    ]
    with pytest.raises(DataError) as error:
        read_tastes(written(tmp_path / "s.json", wrong), Places())
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "object 0, user_style or worker_style: expected at most one of them (found 2)",
        "object 1, worker_style: expected text (found int 3)",
        "object 2, window_position: expected a whole number (found str 'first')",
        "object 2, total_sequence_length: expected a whole number (found float 1.5)",
        "object 3, target_item_info.score: expected a number (found str '4')",
        "object 3, target_item_info.aesthetic_score: expected a number (found bool True)",
        "object 3, target_item_info.colour: unknown key; known are aesthetic_score, caption, image_path, item_id, "
        "score",
    ]


def test_folders_that_moved_together_are_one_problem(tmp_path: Path) -> None:
    """A theme has a folder of its own: a thousand of them are still one prefix."""
    samples = []
    for theme in ("dog", "cat", "owl"):
        one = sample()
        one["target_item_info"]["image_path"] = f"/gone/SER/Images/{theme}/b.jpg"
        samples.append(one)
    samples[0]["history_items_info"][0]["image_path"] = "/lost/a.jpg"
    with pytest.raises(DataError) as error:
        read_tastes(written(tmp_path / "s.json", samples), Places())
    lines = str(error.value).splitlines()
    assert lines[0].endswith(": 2 problems")
    assert 'data.path_prefix: {"/lost": "where it is now"}' in lines[1]
    assert "/gone/SER/Images/dog is not there, nor are 2 more below /gone/SER/Images" in lines[2]
    assert 'data.path_prefix: {"/gone/SER/Images": "where it is now"}' in lines[2]
    (tmp_path / "new").mkdir()
    for theme in ("dog", "cat", "owl"):
        (tmp_path / "new" / theme).mkdir()
    places = Places(prefixes={"/gone/SER/Images": str(tmp_path / "new"), "/lost": str(tmp_path)})
    assert read_tastes(tmp_path / "s.json", places)[0].target.path == tmp_path / "new" / "dog" / "b.jpg"


def test_preferences_in_both_forms(tmp_path: Path) -> None:
    path = tmp_path / "preferences.json"
    listed = [{"worker": "A1", "style": " calm "}, {"user": 7, "style": "red"}]
    assert read_styles(written(path, listed)) == {"A1": "calm", "7": "red"}
    theme = {
        "topic": "01-panda",
        "num_history_items": 25,
        "keywords": ["cute", "round"],
        "sample_captions": ["a panda"],
    }
    assert read_styles(written(path, {"01-panda": theme, "owl": "grey"})) == {"01-panda": "cute, round", "owl": "grey"}
    wrong = [
        {"user": "a"},
        {"user": "a", "worker": "b", "style": "x"},
        3,
        {"user": "c", "style": "x"},
        {"user": "c", "style": "y"},
    ]
    with pytest.raises(DataError) as error:
        read_styles(written(path, wrong))
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert lines[0] == f"{path}: 4 problems"
    assert [line.partition(":")[0] for line in lines[1:]] == ["entry 0", "entry 1", "entry 2", "entry 4"]
    assert lines[4] == "entry 4: the user 'c' stands there already"
    with pytest.raises(DataError, match="entry 01-panda: is called '02-owl' inside"):
        read_styles(written(path, {"01-panda": theme | {"topic": "02-owl"}}))
    with pytest.raises(DataError, match="expected a list or an object"):
        read_styles(written(path, 3))
