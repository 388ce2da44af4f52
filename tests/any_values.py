"""Strategies for hypothesis: any plain values, and trees that are nearly right."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "",
            " ",
            "a",
            "é",
            "nan",
            "inf",
            "-inf",
            "5e-5",
            "null",
            "\x1b[2J",
            "\u202e",
            "\0",
            "../x",
            "/etc/passwd",
            "x" * 5000,
        ]
    ),
)
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -1e308, 5e-324]),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def near(draw: st.DrawFn, right: Any, most: int = 3) -> Any:
    """``right`` with up to ``most`` values changed, replaced, removed, given another key, or added, at any depth."""
    tree = copy.deepcopy(right)
    for _ in range(draw(st.integers(0, most))):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = draw(st.sampled_from(keys)) if keys else None
            if key is None or not isinstance(node[key], dict | list) or draw(st.booleans()):
                break
            node = node[key]
        _change(draw, node, key)
    return tree


def _change(draw: st.DrawFn, node: Any, key: Any) -> None:
    action = draw(st.sampled_from(["alike", "alike", "replace", "remove", "rename", "add"]))
    if key is None or action == "add":
        if isinstance(node, dict):
            node[draw(WORDS)] = draw(TREES)
        else:
            node.append(draw(TREES))
    elif action == "alike":
        node[key] = draw(NUMBERS if isinstance(node[key], int | float) else WORDS)
    elif action == "replace":
        node[key] = draw(TREES)
    else:
        value = node.pop(key)
        if action == "rename":
            if isinstance(node, dict):
                node[draw(st.one_of(WORDS, st.just(f"{key}s"), st.just(str(key)[1:])))] = value
            else:
                node.append(value)


@st.composite
def near_text(draw: st.DrawFn, right: st.SearchStrategy[str]) -> str:
    """A text, cut or with something put into it once in a while."""
    text = draw(right)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        place = draw(st.integers(0, len(text)))
        after = draw(st.integers(place, len(text)))
        text = text[:place] + draw(st.one_of(WORDS, st.sampled_from(list("{}[],:\"'\n\t#&*!-=.")))) + text[after:]
    return text


@st.composite
def near_bytes(draw: st.DrawFn, right: bytes) -> bytes:
    """A file with bytes changed, cut out or put in."""
    data = bytearray(right)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        action = draw(st.sampled_from(["flip", "cut", "drop", "put"]))
        if action == "flip" and place < len(data):
            data[place] ^= draw(st.integers(1, 255))
        elif action == "cut":
            del data[place:]
        elif action == "drop":
            del data[place : place + draw(st.integers(1, 64))]
        else:
            data[place:place] = draw(st.binary(max_size=16))
    return bytes(data)


def as_json(tree: Any) -> str:
    """JSON as Python writes it, NaN and surrogates included."""
    return json.dumps(tree)
