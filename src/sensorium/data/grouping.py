"""Groups from shared features, and splits that depend on nothing but the name of a group."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Sequence

from sensorium.data.items import Split


def merge(keys: Sequence[Collection[Hashable]]) -> list[int]:
    """For each entry the number of the first entry that it hangs together with, directly or through others.

    Two entries hang together when they share a key, such as the bytes of a picture or a caption.
    """
    parent = list(range(len(keys)))

    def first(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    owner: dict[Hashable, int] = {}
    for number, entry in enumerate(keys):
        for key in entry:
            a, b = first(owner.setdefault(key, number)), first(number)
            parent[max(a, b)] = min(a, b)
    return [first(number) for number in range(len(keys))]


def draw(seed: int, *parts: str) -> float:
    """A number in [0, 1) that depends on the seed and the words alone, the same on every machine and in every year."""
    text = "\x1f".join([str(seed), *parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def split_of(group: str, seed: int, val: float = 0.1, test: float = 0.1) -> Split:
    """These shares in the mean, the rest train, by a hash: adding a group moves no other one."""
    number = draw(seed, "split", group)
    return "train" if number < 1 - test - val else "val" if number < 1 - test else "test"
