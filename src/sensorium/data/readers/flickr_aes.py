"""FLICKR-AES (Ren 2017): 40,988 photographs, each rated by about five of 210 workers, who are the users.

The folder as it is published::

    FLICKR-AES_image_labeled_by_each_worker.csv   worker, imagePair,score: with a blank before the second name; 1 to 5
    FLICKR-AES_image_score.txt                    optional: NAME.jpg and its mean rating, 0 to 1
    40K/                                          the photographs
    FLICKR_captions.json                          optional, as the published set has none: from NAME to caption

A folder more or less above each of them does not matter. A user's history is what they rated above ``above``, in the
order of the lines, which is as published. An item is called like its photograph, without the ending.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from sensorium.data import parsing
from sensorium.data.history_build import Choices, Raw, Step, captions_of, compose, pictures_in, without_ending
from sensorium.data.items import DataSet
from sensorium.errors import DataError

NAME = "flickr_aes"
SUMMARY = "FLICKR-AES: photographs that 210 workers rated, as histories of what each of them liked"
LICENCE = "photographs: Creative Commons, as each states; ratings: research"
DEFAULT_ROOT = Path("data/flickr_aes")
RATINGS, SCORES, PICTURES = "FLICKR-AES_image_labeled_by_each_worker.csv", "FLICKR-AES_image_score.txt", "40K"
CAPTIONS = "FLICKR_captions.json"
COLUMNS = ("worker", "imagePair", "score")
FULL = (40_988, 210, 193_208)  # photographs, workers, ratings


class Options(Choices):
    """What is read, and how it is split."""

    history: int = Field(3, ge=1, le=32, description="Photographs liked before the one that is foretold.")
    above: int = Field(2, ge=0, le=4, description="A photograph was liked that was rated above this.")


def read(root: Path | None, options: Options) -> DataSet:
    """Read the data set. Raises DataError naming file and line, or folder, of what is missing or damaged."""
    return compose(gather(root, options), options)[0]


def gather(root: Path | None, options: Options, *, captions: Mapping[str, str] | None = None, by: str = "") -> Raw:
    """What stands in its files. ``captions``: instead of a file of them, written by ``by``."""
    root = root or DEFAULT_ROOT
    parsing.require_folder(root, "FLICKR-AES comes from github.com/alanspike/personalizedImageAesthetics")
    places = parsing.find_places(root, {RATINGS, SCORES, PICTURES}, closed={PICTURES})
    for needed in (RATINGS, PICTURES):
        if needed not in places:
            raise DataError(f"FLICKR-AES in {root}: {needed} is missing")
    users, ratings = _ratings(places[RATINGS], options.above)
    pictures = pictures_in(places[PICTURES])
    if captions is None:
        read, by = captions_of(options, root, CAPTIONS, {})
        captions = {without_ending(name): text for name, text in read.items()}
    about = _scores(places[SCORES]) if SCORES in places else {}
    counted = (len(pictures), len(users), ratings)
    notes = [f"FLICKR-AES: {counted[0]:,} photographs, {counted[1]:,} workers, {counted[2]:,} ratings"]
    if counted != FULL:
        notes.append(f"FLICKR-AES: the whole set has {FULL[0]:,}, {FULL[1]:,} and {FULL[2]:,}")
    kept: dict[str, Any] = {user: steps for user, steps in users.items() if len(steps) > options.history}
    return Raw(NAME, LICENCE, root, options.history, kept, pictures, captions, by, about, tuple(notes))


def _ratings(path: Path, above: int) -> tuple[dict[str, list[Step]], int]:
    """What each worker liked, and the number of all ratings."""
    users: dict[str, list[Step]] = {}
    count = 0
    for line, row in parsing.table(path, COLUMNS):
        worker, picture, score = (cell.strip() for cell in row)
        if not (worker and picture and score in ("1", "2", "3", "4", "5")):
            raise DataError(
                f"{path}: line {line}: expected a worker, a picture and 1 to 5 (found {','.join(row)[:80]!r})"
            )
        count += 1
        liked = users.setdefault(worker, [])
        if int(score) > above:
            liked.append(Step(without_ending(picture), score))
    return users, count


def _scores(path: Path) -> dict[str, dict[str, str]]:
    """The mean rating of each photograph."""
    found: dict[str, dict[str, str]] = {}
    for number, line in parsing.lines(path):
        name, _, score = line.rpartition(" ")
        try:
            value = float(score)
        except ValueError:
            value = -1.0
        if not name or not 0 <= value <= 5:
            raise DataError(f"{path}: line {number}: expected NAME and a mean rating (found {line[:60]!r})")
        found[without_ending(name)] = {"aesthetic": score}
    return found
