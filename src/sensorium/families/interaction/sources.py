"""Reading the data sets of an `interaction` run and making them ready."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.data import features, readers
from sensorium.data.items import MODALITIES, DataSet, Modality
from sensorium.data.pictures import Pictures
from sensorium.engine.contract import Host, Mix, Sources
from sensorium.engine.settings import RunConfig
from sensorium.errors import ConfigError, DataError
from sensorium.families.interaction import words
from sensorium.families.interaction.config import ModelConfig
from sensorium.families.interaction.data import (
    RESIZE,
    DataConfig,
    EvalSource,
    Media,
    TrainSource,
    content_keys,
    mel_statistics,
)
from sensorium.families.interaction.samples import Row, Sample, group_numbers, require_apart, rows, samples
from sensorium.parts.mel import LogMel

UNIMODAL, ALIGN, FULL = "unimodal", "align", "full"  # the stages
_NOUNS: Mapping[Modality, str] = {"text": "texts", "image": "pictures", "audio": "recordings"}


def sources(config: RunConfig, host: Host) -> Sources:
    """Read the sets, keep log-mel frames in the cache, and split. Raises ConfigError and DataError."""
    data, model = _sections(config)
    places = words.find(model.text)  # say now what cannot be reached, not after the data were read
    sets = _read(data, host)
    numbers = group_numbers(sets)
    labels = label_numbers(sets, model.num_classes)
    train = samples(sets, numbers, labels)
    if not train:
        raise DataError(f"no training samples in {', '.join(str(one.root) for one in sets)}")
    known = aligned(train)  # an embedding that was never compared with another modality's says nothing
    whole = {"val": rows(sets, numbers, "val", data.validation_groups), "test": rows(sets, numbers, "test")}
    held = {split: [row for row in part if row.modality in known] for split, part in whole.items()}
    teachers = _open_teachers(config, host, train)  # likewise
    media, bad = _media(config, host, places, train, [row for part in held.values() for row in part])
    train = [sample for sample in train if str(sample.audio) not in bad]
    paired = [sample for sample in train if len(sample.modalities) > 1]
    if not paired:
        raise DataError("every training sample has one modality alone, so nothing can be aligned; give captioned data")
    for split, part in held.items():
        broken = [row.content for row in part if str(row.content) in bad]
        if broken:  # a table over fewer samples would not be the table
            raise DataError(f"{split}: {broken[0]}: {bad[str(broken[0])]}")
    source = TrainSource(paired, media, tuple(labels), _mix(data, paired))
    source.others = [sample for sample in train if len(sample.modalities) == 1]
    _teach(source, teachers, held["val"], config, host)
    alone = source.alone() if model.stages.unimodal.share else None
    for line in (*_counts(list(data.sets), train, held), *_objectives(config, source, known)):
        host.say(line)
    names, notes = (
        list(data.sets),
        [f"{name}: {note}" for name, one in zip(data.sets, sets, strict=True) for note in one.notes],
    )
    judged = {
        split: EvalSource(part, media, names, notes, label_names=tuple(labels)) if part else None
        for split, part in held.items()
    }
    if judged["val"] is not None:
        judged["val"].teachers = source.teachers
    return Sources(source, judged["val"], judged["test"], {} if alone is None else {UNIMODAL: alone}, source)


def aligned(train: Sequence[Sample]) -> set[Modality]:
    """The modalities that occur together with another one."""
    return {m for sample in train if len(sample.modalities) > 1 for m in sample.modalities}


def facts(config: RunConfig, found: Sources) -> dict[str, Any]:
    """What the task is built from: words, labels, mel statistics, and which modalities are trained."""
    data, _ = _sections(config)
    train = found.train
    assert isinstance(train, TrainSource)
    return {
        "vocabulary": train.media.tokenizer.vocabulary.values(),
        "labels": list(train.label_names),
        "by_labels": train.by_labels,
        "mel_mean": train.media.mean.tolist(),
        "mel_std": train.media.std.tolist(),
        "modalities": sorted(aligned(train.samples)),
        "sets": sorted(data.sets),
        "teachers": {m: mean.tolist() for m, mean in train.teacher_means.items()},
    }


def cache_root(data: DataConfig) -> Path:
    """Folder of the caches."""
    return Path(data.cache).expanduser() if data.cache else features.default_root()


def _sections(config: RunConfig) -> tuple[DataConfig, ModelConfig]:
    assert isinstance(config.data, DataConfig)
    assert isinstance(config.model, ModelConfig)
    return config.data, config.model


def _read(data: DataConfig, host: Host) -> list[DataSet]:
    if not data.sets:
        raise ConfigError(
            "no data set is named: set data.sets.NAME.reader and data.sets.NAME.root (`sensorium data list` shows the "
            "readers)"
        )
    sets = []
    for name, one in data.sets.items():
        found = readers.read(one.reader, Path(one.root).expanduser() if one.root else None, one.options)
        for note in found.notes:
            host.say(f"{name}: {note}")
        sets.append(found)
    require_apart(sets)
    return sets


def label_numbers(sets: Sequence[DataSet], most: int) -> dict[str, int]:
    """Numbers of the labels: those of sets that number theirs, in that order, then the others by the alphabet."""
    others = sorted({label for one in sets for item in one.of_split("train") for label in item.labels})
    names = dict.fromkeys([*(label for one in sets for label in one.label_names), *others])
    if len(names) > most:
        raise ConfigError(f"the data have {len(names)} labels; model.num_classes is {most}: raise it")
    return {name: number for number, name in enumerate(names)}


def _media(
    config: RunConfig, host: Host, places: words.Places, train: Sequence[Sample], held: Sequence[Row]
) -> tuple[Media, Mapping[str, str]]:
    """How samples become arrays, and which recordings cannot."""
    data, model = _sections(config)
    root = cache_root(data)
    captions = [text for sample in train for text in sample.captions]
    if places.tokenizer is None:  # without captions there is nothing to spell
        vocabulary = words.learn_vocabulary(captions, model.vocab) if captions else words.Vocabulary(words.SPECIAL)
    else:
        vocabulary = words.read_vocabulary(places.tokenizer, model.vocab)
    paths: dict[str, list[Path]] = {"image": [], "audio": []}
    for sample in train:
        paths["image"] += [sample.image] if sample.image else []
        paths["audio"] += [sample.audio] if sample.audio else []
    mine = list(dict.fromkeys(paths["audio"]))
    for row in held:
        if isinstance(row.content, Path):
            paths[row.modality].append(row.content)
    store, bad = _mels(config, host, root, list(dict.fromkeys(paths["audio"])))
    keys = content_keys(root, [path for path in [*paths["image"], *paths["audio"]] if str(path) not in bad])
    bands = model.mel_bands
    mean, std = np.zeros(bands), np.ones(bands)
    if store is not None and (heard := [keys[path] for path in mine if path in keys]):
        mean, std = mel_statistics(store, heard)
    media = Media(
        tokenizer=words.WordTokenizer(vocabulary, model.max_tokens),
        pictures=Pictures(round(model.image_size * RESIZE), root / "pictures" if data.keep_pictures else None),
        side=model.image_size,
        mels=store,
        mean=mean.astype(np.float32),
        std=std.astype(np.float32),
        crop_frames=data.audio_crop_frames,
        keys=keys,
    )
    return media, bad


def _mels(
    config: RunConfig, host: Host, root: Path, paths: Sequence[Path]
) -> tuple[features.FeatureStore | None, Mapping[str, str]]:
    """Log-mel frames of all recordings, from the cache; and why some have none."""
    data, model = _sections(config)
    if not paths:
        return None, {}
    encoder = LogMel(model.mel_bands, data.audio_max_seconds)
    with host.progress("read sound", len(paths)) as advance:
        store = features.cached(encoder, paths, root, _fill_options(config, host, advance))
    if encoder.truncated:
        host.say(f"{encoder.truncated} recordings were longer than {data.audio_max_seconds:g} s, and cut")
    if len(store.skipped) > config.loader.max_bad:
        raise DataError(f"{len(store.skipped)} bad recordings; loader.max_bad is {config.loader.max_bad}")
    for content, reason in store.skipped.items():
        host.say(f"left out: {reason if content in reason else f'{content}: {reason}'}")
    return store, store.skipped


def has_teachers(config: RunConfig) -> bool:
    """Whether the towers learn from frozen encoders."""
    data, model = _sections(config)
    return bool(model.weights.distil) and any(getattr(data.teachers, m) is not None for m in MODALITIES)


def _open_teachers(config: RunConfig, host: Host, train: Sequence[Sample]) -> dict[Modality, features.Encoder]:
    """The frozen encoders. Raises ConfigError for one that cannot be reached or has nobody to teach."""
    data, _ = _sections(config)
    if not has_teachers(config):
        return {}
    # Brings transformers and accelerate, beside which a guide's own `datasets.py` must not lie.
    from sensorium.parts.encoders import EncoderOptions, open_encoder

    options = EncoderOptions(max_seconds=data.audio_max_seconds, features="pooled")
    known = {modality for sample in train for modality in sample.modalities}
    names = {modality: name for modality in MODALITIES if (name := getattr(data.teachers, modality)) is not None}
    for modality, name in names.items():
        if modality not in known:
            raise ConfigError(f"data.teachers.{modality} is {name!r}, but there are no {_NOUNS[modality]} to train on")
    return {m: open_encoder(m, name, options, cache_root(data), host.device) for m, name in names.items()}


def _teach(
    source: TrainSource,
    teachers: Mapping[Modality, features.Encoder],
    val: Sequence[Row],
    config: RunConfig,
    host: Host,
) -> None:
    """Give the source the teachers' vectors of all its samples, from the cache, and their means; the pictures and
    recordings of the validation have theirs there, too, for the loss of the first stage."""
    stores: dict[Modality, features.FeatureSource] = {}
    means: dict[Modality, np.ndarray] = {}
    contents = contents_of(source.everything)
    for modality, encoder in teachers.items():
        further = [row.content for row in val if row.modality == modality and isinstance(row.content, Path)]
        found = pooled_store(encoder, contents[modality], config, host, f"for {encoder.name}", further)
        stores[modality], means[modality] = found
    source.teachers, source.teacher_means = stores, means


def contents_of(train: Sequence[Sample]) -> dict[Modality, list[str | Path]]:
    """Every text, picture and recording once."""
    found: dict[Modality, dict[str | Path, None]] = {m: {} for m in MODALITIES}
    for sample in train:
        found["text"] |= dict.fromkeys(sample.captions)
        found["image"] |= dict.fromkeys([sample.image] if sample.image else [])
        found["audio"] |= dict.fromkeys([sample.audio] if sample.audio else [])
    return {modality: list(contents) for modality, contents in found.items()}


def pooled_store(
    encoder: features.Encoder,
    contents: Sequence[str | Path],
    config: RunConfig,
    host: Host,
    purpose: str,
    further: Sequence[str | Path] = (),
) -> tuple[features.FeatureStore, np.ndarray]:
    """The store of the vectors of some contents, encoded where they are missing, and the mean of those that are not
    ``further``, float32. What is broken has none, where bad samples are to be skipped."""
    data, _ = _sections(config)
    everything = list(dict.fromkeys([*contents, *further]))
    with host.progress(f"encode {encoder.modality} {purpose}", len(everything)) as advance:
        store = features.cached(encoder, everything, cache_root(data), _fill_options(config, host, advance))
    whole = [content for content in contents if str(content) not in store.skipped]
    total = sum(store.get(key).pooled.astype(np.float64) for key in store.keys(whole))
    return store, np.asarray(total / max(1, len(whole)), np.float32)


def _fill_options(config: RunConfig, host: Host, advance: Callable[[int, int], None]) -> features.FillOptions:
    return features.FillOptions(
        policy=config.loader.bad_samples,
        rank=host.rank,
        world_size=host.world,
        barrier=host.barrier,
        progress=advance,
        say=host.say,
    )


def _mix(data: DataConfig, train: Sequence[Sample]) -> Mix | None:
    """Samples of one set and the same modalities are of one kind."""
    if data.batches == "mixed":
        return None
    kinds = sorted({(sample.set, sample.modalities) for sample in train})
    if len(kinds) < 2:
        return None
    number = {kind: place for place, kind in enumerate(kinds)}
    found = np.array([number[sample.set, sample.modalities] for sample in train], np.int64)
    given = [one.weight for one in data.sets.values()]
    if all(weight is None for weight in given):
        return Mix(found)
    trained = {place for place, _ in kinds}
    missing = [name for place, (name, one) in enumerate(data.sets.items()) if place in trained and one.weight is None]
    if missing:
        raise ConfigError(f"data.sets.{missing[0]}.weight is not given, but others are; give all weights or none")
    sizes = np.bincount(found)  # a set's weight is shared out among its kinds by their sizes
    of_set = [sum(size for (one, _), size in zip(kinds, sizes, strict=True) if one == place) for place, _ in kinds]
    weights = [
        float(given[place] or 0) * size / whole for (place, _), size, whole in zip(kinds, sizes, of_set, strict=True)
    ]
    return Mix(found, tuple(weights))


def _objectives(config: RunConfig, source: TrainSource, known: Collection[Modality]) -> Iterator[str]:
    """What each tower learns by itself, in the first stage, and which have nothing to learn from."""
    data, model = _sections(config)
    wanted = {"image": "hidden patches", "audio": "hidden stretches"}
    if source.by_labels:
        wanted["image"] = f"{len(source.label_names):,} labels"
    wanted |= {modality: f"the teacher {getattr(data.teachers, modality)}" for modality in source.teachers}
    seen = {modality for sample in source.everything for modality in sample.modalities}
    for modality, noun in _NOUNS.items():
        if model.stages.unimodal.share and modality in seen and modality != "text":
            yield f"stage {UNIMODAL}: {noun} learn from {wanted[modality]}"
        if modality not in known:
            yield f"no {noun} beside anything else to train on: that tower is not aligned, and {noun} are not judged"


def _counts(names: Sequence[str], train: Sequence[Sample], held: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """A line a set: what is really there."""
    for number, name in enumerate(names):
        mine = [sample for sample in train if sample.set == number]
        texts = sum(len(sample.captions) for sample in mine)
        parts = [f"{len(mine):,} training samples with {texts:,} texts"]
        if alone := sum(len(sample.modalities) == 1 for sample in mine):
            parts.append(f"{alone:,} of them have one modality alone, which the first stage is for")
        for split, found in held.items():
            counts = [
                f"{count:,} {noun}"
                for modality, noun in _NOUNS.items()
                if (count := sum(row.set == number and row.modality == modality for row in found))
            ]
            parts.append(f"{split}: {', '.join(counts) or 'none'}")
        yield f"{name}: {'; '.join(parts)}"
