"""Animated emoji: Microsoft's Fluent Emoji as the npm package ``@lobehub/fluent-emoji-anim-1`` holds them, with names.

The folder, unpacked::

    assets/<code points>.webp     animated ones, and still ones, which are left out

They are turned into MP4 once, into the cache folder: on white, each frame for as long as it lasted. One Item is one
name or alias of one video; a group is a concept, and the same one as in the reader ``emoji``, so that what is held out
here is held out there by the same seed and shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError
from pydantic import Field

from sensorium import reading
from sensorium.config import Section
from sensorium.data import parsing
from sensorium.data.emoji_names import Emoji, catalogue, is_plain, key
from sensorium.data.feature_keys import ContentKeys
from sensorium.data.files import cache_folder
from sensorium.data.grouping import split_of
from sensorium.data.items import DataSet, Item, Split
from sensorium.data.readers.emoji import concept_groups
from sensorium.data.video_write import Codec, write_video
from sensorium.errors import DataError
from sensorium.files import make_folder, remove_leftovers

NAME = "fluent_emoji"
SUMMARY = "animated Fluent Emoji with names, as videos (npm package @lobehub/fluent-emoji-anim-1, unpacked)"
LICENCE = "MIT, Microsoft and LobeHub; names: Unicode licence"
_FORMAT = 1  # of the videos; a change makes older ones unused
_RATE = Fraction(24)
_THREADS = 2


class Options(Section):
    """Which emoji."""

    variants: Literal["none", "train", "all"] = Field(
        "train", description="Where skin tones and other variants of a concept are taken, besides the plain one."
    )
    aliases: bool = Field(True, description="Take aliases that are words in training; what is tested goes by its name.")
    seed: int = Field(0, ge=0, description="Of the split.")
    val_share: float = Field(0.15, ge=0, le=0.4, description="Part of the concepts that is val, in the mean.")
    test_share: float = Field(0.25, ge=0, le=0.4, description="Part of the concepts that is test, in the mean.")


def read(root: Path | None, options: Options) -> DataSet:
    """Read the folder, and make the videos that are not there yet. Raises DataError: no folder, no animations in it, a
    damaged one, names not installed; DiskError."""
    if root is None:
        raise DataError(
            "fluent_emoji needs the folder of the package; npm pack @lobehub/fluent-emoji-anim-1, unpack it"
        )
    parsing.require_folder(root, "unpack the package @lobehub/fluent-emoji-anim-1 there")
    pictures = {_key_of(path): path for path in sorted(root.rglob("*.webp"))}
    emoji = catalogue()
    groups = concept_groups(emoji)
    animated = [one for one in emoji if key(one.chars) in pictures and _is_animated(pictures[key(one.chars)])]
    if not animated:
        raise DataError(f"{root}: holds no animated emoji (assets/*.webp)")
    parts: dict[str, Split] = {
        one.chars: split_of(groups[one.chars], options.seed, options.val_share, options.test_share) for one in animated
    }
    taken = list(_taken(animated, groups, parts, options))
    videos = _videos([pictures[key(one.chars)] for one in taken])
    items = tuple(
        Item(f"{key(one.chars)}#{n}", groups[one.chars], parts[one.chars], text, video=video, meta={"emoji": one.chars})
        for one, video in zip(taken, videos, strict=True)
        for n, text in enumerate(_texts(one, parts[one.chars], options))
    )
    concepts = len({item.group for item in items})
    note = f"fluent_emoji: {len(taken)} of {len(animated)} animated emoji, {concepts} concepts, {len(items)} texts"
    return DataSet(NAME, videos[0].parent, LICENCE, items, (note,))


def _key_of(path: Path) -> str:
    return "-".join(part.lstrip("0") for part in path.stem.lower().split("-") if part != "fe0f")


def _is_animated(path: Path) -> bool:
    with _opened(path) as image:
        return getattr(image, "n_frames", 1) > 1


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=("WEBP",))
    except (*reading.PICTURE_ERRORS, UnidentifiedImageError) as error:
        raise DataError(f"{path}: not a WebP picture ({error})") from error


def _taken(
    animated: Sequence[Emoji], groups: dict[str, str], parts: dict[str, Split], options: Options
) -> Iterator[Emoji]:
    """Of each group the plainest; of what is trained on the variants, too."""
    first: dict[str, Emoji] = {}
    for one in sorted(animated, key=lambda one: (not is_plain(one), len(one.chars))):
        first.setdefault(groups[one.chars], one)
    for one in animated:
        wanted = options.variants == "all" or (options.variants == "train" and parts[one.chars] == "train")
        if wanted or first[groups[one.chars]] is one:
            yield one


def _texts(one: Emoji, split: Split, options: Options) -> tuple[str, ...]:
    return one.texts if options.aliases and split == "train" else one.texts[:1]


def _videos(pictures: Sequence[Path]) -> list[Path]:
    """The video of each animation, under the digest of its bytes."""
    folder = cache_folder(f"fluent-emoji-{_FORMAT}")
    make_folder(folder)
    remove_leftovers(folder)
    digests = ContentKeys(None).keys(pictures)
    targets = [folder / f"{path.stem}-{digest[:12]}.mp4" for path, digest in zip(pictures, digests, strict=True)]
    missing = [(path, target) for path, target in zip(pictures, targets, strict=True) if not target.is_file()]
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda pair: write_video(pair[1], _frames(pair[0]), _RATE, Codec(group=24)), missing):
            pass
    return targets


def _frames(path: Path) -> Iterator[tuple[float, Image.Image]]:
    """Seconds and pictures on white."""
    with _opened(path) as image:
        size = image.size
        for number in range(getattr(image, "n_frames", 1)):
            try:
                image.seek(number)
                image.load()
            except reading.PICTURE_ERRORS as error:
                raise DataError(f"{path}: frame {number} cannot be decoded ({error})") from error
            frame = Image.alpha_composite(Image.new("RGBA", size, "white"), image.convert("RGBA")).convert("RGB")
            yield image.info["timestamp"] / 1000, frame
