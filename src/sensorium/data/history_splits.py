"""Which samples of a set of histories are for training, validation and test.

``guide`` follows the published counting: users shuffled, validation exactly 15 samples user by user, of the other users
80 : 15 for training and test, the test at most 2,000 samples, balanced between users. Its order is that of Python's own
generator, so that the published seed gives the published users. ``honest`` has as many users as a comparison needs, and
no sample of training holds a target that is held out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from sensorium.data.grouping import draw
from sensorium.data.items import Split

Rule = Literal["guide", "honest"]
Published = Literal["windows", "themes"]
"""Which of the published scripts is followed: those of FLICKR-AES and POG, or that of SER30K."""

VAL, MOST_TEST = 15, 2000  # samples, as published
_TRAIN, _TEST = 0.8, 0.15
HONEST_VAL, HONEST_TEST = 0.05, 0.20  # of the users
LEAST_VAL, LEAST_VAL_USERS, MOST_VAL = 200, 10, 500

One = TypeVar("One")
Users = Mapping[str, Sequence[One]]
"""The samples of each user, in the order of the data set."""


def guide(users: Users[One], seed: int, published: Published = "windows") -> dict[Split, list[One]]:
    """As published; users of validation beyond its 15 samples are in no other split."""
    order = sorted(users) if published == "themes" else list(users)
    numbers = random.Random(seed)
    numbers.shuffle(order)
    val: list[One] = []
    taken = 0
    while len(val) < VAL and taken < len(order):
        val += users[order[taken]]
        taken += 1
    rest = order[taken:]
    if published == "themes":
        count = len(rest) - int(len(rest) * (_TRAIN / (_TRAIN + _TEST)))
    else:
        count = max(1, int(len(rest) * _TEST / (_TRAIN + _TEST)))
    middle = max(len(rest) - count, 0)
    test = [list(users[user]) for user in rest[middle:]]
    if published == "windows" and sum(map(len, test)) > MOST_TEST:
        quota = MOST_TEST // len(test) + 1
        test = [numbers.sample(one, min(len(one), quota)) for one in test]
    chosen = [sample for one in test for sample in one]
    if published == "windows" and len(chosen) > MOST_TEST:
        numbers.shuffle(chosen)
        del chosen[MOST_TEST:]
    train = [sample for user in rest[:middle] for sample in users[user]]
    return {"train": train, "val": val[:VAL], "test": chosen}


def honest(
    users: Users[One], seed: int, pictures: Callable[[One], Sequence[str]]
) -> tuple[dict[Split, list[One]], int]:
    """Users by a hash, 75 : 5 : 20, more of them for validation where it would have fewer than 200 samples or 10 users
    (at most a quarter); and the number of samples of training left out, as they hold a target that is held out.

    Validation has at most 500 samples, the test 2,000, and neither more than a tenth as many as there are pictures:
    each target that is held out takes all samples with it that hold its picture.

    ``pictures``: those of a sample, the target last; equal for the same picture.
    """
    order = sorted(users, key=lambda user: draw(seed, "histories", user))
    tests = round(len(order) * HONEST_TEST)
    test, rest = order[:tests], order[tests:]
    vals, most = round(len(order) * HONEST_VAL), len(order) // 4
    while vals < most and (vals < LEAST_VAL_USERS or sum(len(users[user]) for user in rest[:vals]) < LEAST_VAL):
        vals += 1
    tenth = len({picture for chosen in users.values() for one in chosen for picture in pictures(one)}) // 10
    found: dict[Split, list[One]] = {
        "train": [one for user in rest[vals:] for one in users[user]],
        "val": _balanced(users, rest[:vals], min(MOST_VAL, tenth), seed),
        "test": _balanced(users, test, min(MOST_TEST, tenth), seed),
    }
    held = {pictures(one)[-1] for split in ("val", "test") for one in found[split]}
    kept = [one for one in found["train"] if held.isdisjoint(pictures(one))]
    withheld = len(found["train"]) - len(kept)
    return found | {"train": kept}, withheld


def _balanced(users: Users[One], chosen: Sequence[str], most: int, seed: int) -> list[One]:
    """At most so many samples, from each user as many as from the others while they have some."""
    turns: list[tuple[int, int, str, One]] = []
    for number, user in enumerate(chosen):
        drawn = sorted(range(len(users[user])), key=lambda place: draw(seed, "balanced", user, str(place)))
        turns += [(turn, number, user, users[user][place]) for turn, place in enumerate(drawn)]
    kept = sorted(turns, key=lambda turn: turn[:2])[:most]
    return [one for *_, one in kept]
