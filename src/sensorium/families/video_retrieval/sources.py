"""Reading the data set of a `video_retrieval` run, keeping its frames, and making its splits ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sensorium.data import features, frame_cache, parsing, readers
from sensorium.data.frames import DirectFrames, FrameReader, Look, Stretch
from sensorium.data.items import SPLITS, DataSet, Item, Split
from sensorium.data.readers import activitynet, didemo, msrvtt, native, vatex, videos
from sensorium.engine.contract import Host, Sources
from sensorium.engine.settings import RunConfig
from sensorium.errors import ConfigError, DataError
from sensorium.families.video_retrieval.config import ModelConfig
from sensorium.families.video_retrieval.data import Clip, DataConfig, EvalSource, Media, TrainSource
from sensorium.families.video_retrieval.outline import outline
from sensorium.families.video_retrieval.plan import frames_words
from sensorium.families.video_retrieval.shape import clip_shape
from sensorium.families.video_retrieval.words import open_tokenizer

_PUBLISHED: Mapping[str, str] = {module.NAME: module.SIGN for module in (msrvtt, didemo, activitynet, vatex)}


BANK = 5000  # training captions of QB-Norm at most, spread evenly


@dataclass(frozen=True)
class _Part:
    """One split: its clips, and which text belongs to which."""

    clips: tuple[Clip, ...]
    pairs: tuple[tuple[int, str], ...]


def sources(config: RunConfig, host: Host) -> Sources:
    """Read the data set, keep the frames of training and validation, and split. Raises ConfigError and DataError."""
    data, model = config.data, config.model
    assert isinstance(data, DataConfig)
    assert isinstance(model, ModelConfig)
    for line in outline(config):  # what cannot be planned, too, is said now, not after the data were read
        host.say(line)
    shape = clip_shape(model)
    frames, length = frames_words(model, data.datatype)
    words = open_tokenizer(model, length)
    found = read(data, host)
    parts = _parts(found)
    if not parts["train"].pairs:
        raise DataError(f"{found.root}: holds no training videos with captions")
    if data.protocol == "paper":
        parts["val"] = parts["test"]
    look = Look(shape.resolution, data.cache_fps, data.cache_max_frames)
    direct = DirectFrames(look)
    reader, bad = _reader(config, host, look, parts)
    parts["train"] = _without(parts["train"], bad)
    _say(host, parts, data)
    if cut := words.cut(list(dict.fromkeys(text for _, text in parts["train"].pairs))):
        host.say(f"{cut:,} training captions are longer than {length} tokens, and cut")
    media = Media(reader, words, frames, data.sampling)
    train = TrainSource(parts["train"].clips, parts["train"].pairs, replace(media, augment=data.augment != "none"))
    held = {split: _held(split, parts[split], media, found) for split in ("val", "test")}
    if held["val"] is not None and held["test"] is not None and data.protocol == "paper":
        held["val"].there = held["test"].there
    if data.evaluation.qb_norm:
        captions = list(dict.fromkeys(text for _, text in parts["train"].pairs))
        bank = captions[:: -(-len(captions) // BANK)]
        for part in (part for part in held.values() if part is not None):
            part.bank = bank
    if held["test"] is not None:
        held["test"].media = replace(media, reader=direct)  # its files stay closed until it is evaluated
    return Sources(train, held["val"], held["test"], shared=train)


def read(data: DataConfig, host: Host) -> DataSet:
    """The data set, its notes said. Raises ConfigError, and DataError when a video stands in two splits."""
    root = Path(data.root).expanduser() if data.root else None
    name = data.format if data.format != "auto" else "videos" if data.train else detect(root, data.datatype)
    fields = readers.load(name).Options.model_fields
    given: dict[str, Any] = {"allow_missing": data.allow_missing, "train": data.train, "val": data.val}
    given |= {"test": data.test, "val_videos": 0 if data.protocol == "paper" else data.val_videos}
    options = {key: value for key, value in given.items() if key in fields and value is not None} | data.options
    found = readers.read(name, root, options)
    for note in found.notes:
        host.say(note)
    _require_apart(found)
    return found


def detect(root: Path | None, datatype: str) -> str:
    """The reader for what lies in a folder. Raises DataError when none or several fit, or another set lies there."""
    if root is None:
        raise ConfigError("no data set is named: set data.root, or data.train and data.val, to folders of videos")
    parsing.require_folder(root, "data.root should be the folder of a data set of videos")
    places = parsing.find_places(root, set(_PUBLISHED.values()))
    looked = {name: places.get(sign, root / sign) for name, sign in _PUBLISHED.items()}
    looked |= {videos.NAME: root / "train" / videos.SIGN, native.NAME: root / native.MANIFEST}
    found = [name for name, path in looked.items() if path.is_file()]
    signs = {**_PUBLISHED, videos.NAME: f"train/{videos.SIGN}", native.NAME: native.MANIFEST}
    if len(found) != 1:
        listed = ", ".join(f"{sign} ({name})" for name, sign in signs.items() if name in (found or signs))
        what = f"holds more than one data set: {listed}; name one (data.format=NAME)"
        raise DataError(f"{root}: {what if found else f'holds no data set; looked for {listed}'}")
    if found[0] in _PUBLISHED and found[0] != datatype:
        raise DataError(f"{root}: holds {found[0]} ({signs[found[0]]}), but data.datatype is {datatype}; set it so")
    return found[0]


def _parts(found: DataSet) -> dict[Split, _Part]:
    """The clips of each split, those of one stretch joined, with their texts, each once."""
    groups = {group: number for number, group in enumerate(dict.fromkeys(item.group for item in found.items))}
    parts: dict[Split, _Part] = {}
    for split in SPLITS:
        several: dict[Stretch, list[Item]] = {}
        for item in found.of_split(split):
            if (stretch := stretch_of(item)) is not None:
                several.setdefault(stretch, []).append(item)
        clips, pairs = [], []
        for number, (stretch, items) in enumerate(several.items()):
            texts = list(dict.fromkeys(item.text for item in items if item.text is not None))
            moments = tuple(dict.fromkeys(moment for item in items for moment in item.moments))
            group = groups[items[0].group]
            clips.append(Clip(items[0].id, stretch, group, texts[0] if texts else "", moments))
            pairs += [(number, text) for text in texts]
        parts[split] = _Part(tuple(clips), tuple(pairs))
    return parts


def stretch_of(item: Item) -> Stretch | None:
    """What of an item is looked at: its video, else its picture."""
    if item.video is not None:
        return Stretch(item.video, item.span)
    return Stretch(item.image, still=True) if item.image is not None else None


def _reader(
    config: RunConfig, host: Host, look: Look, parts: Mapping[Split, _Part]
) -> tuple[FrameReader, Mapping[Stretch, str]]:
    """How frames are read, and which training videos cannot be."""
    data = config.data
    assert isinstance(data, DataConfig)
    wanted = {split: [clip.stretch for clip in parts[split].clips] for split in ("train", "val")}
    gone = [one.path for part in parts.values() for one in (c.stretch for c in part.clips) if not one.path.is_file()]
    if gone and config.loader.bad_samples == "raise":
        raise DataError(f"{gone[0]}: no such file ({len(gone):,} videos are missing)")
    moving = [one for some in wanted.values() for one in some if not one.still]
    if data.frame_cache == "none" or not moving:
        return DirectFrames(look), {}
    root = Path(data.cache).expanduser() if data.cache else features.default_root()
    with host.progress("read videos", len(moving)) as advance:
        options = features.FillOptions(
            policy=config.loader.bad_samples,
            rank=host.rank,
            world_size=host.world,
            barrier=host.barrier,
            progress=advance,
            say=host.say,
        )
        reader, bad = frame_cache.keep(look, data.frame_cache, moving, root, options)
    if broken := [one for one in wanted["val"] if one in bad]:  # a table over fewer videos would not be the table
        raise DataError(f"val: {bad[broken[0]]}")
    if len(bad) > config.loader.max_bad:
        raise DataError(f"{len(bad)} bad videos; loader.max_bad is {config.loader.max_bad}")
    for stretch, reason in bad.items():
        host.say(f"left out: {reason if str(stretch.path) in reason else f'{stretch}: {reason}'}")
    return reader, bad


def _without(part: _Part, bad: Mapping[Stretch, str]) -> _Part:
    if not bad:
        return part
    kept = [number for number, clip in enumerate(part.clips) if clip.stretch not in bad]
    places = {number: place for place, number in enumerate(kept)}
    pairs = tuple((places[clip], text) for clip, text in part.pairs if clip in places)
    return _Part(tuple(part.clips[number] for number in kept), pairs)


def _held(split: Split, part: _Part, media: Media, found: DataSet) -> EvalSource | None:
    if not part.pairs:
        return None
    there = found.found.get(split, (len(part.clips), len(part.clips)))
    return EvalSource(part.clips, tuple((text, clip) for clip, text in part.pairs), media, there)


def _say(host: Host, parts: Mapping[Split, _Part], data: DataConfig) -> None:
    counts = [f"{split}: {len(p.clips):,} videos, {len(p.pairs):,} captions" for split, p in parts.items() if p.clips]
    host.say("; ".join(counts))
    if data.protocol == "paper":
        host.say("data.protocol is paper: validation is the test part, so every number is selected on test")
    elif not parts["val"].pairs:
        host.say("there is no validation part, so that the best checkpoint cannot be chosen")


def _require_apart(found: DataSet) -> None:
    """Raise DataError when a video or a group stands in two splits."""
    seen: dict[str | Path, Split] = {}
    for item in found.items:
        contents: Sequence[str | Path | None] = (f"group {item.group}", item.video, item.image)
        for content in contents:
            if content is not None and seen.setdefault(content, item.split) != item.split:
                raise DataError(
                    f"{found.root}: {content} stands in {seen[content]} and in {item.split}; what is tested must not "
                    "be trained on: mend the split"
                )
