"""The splits of a `pmg` run: read, encoded, questioned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sensorium.data import histories, readers
from sensorium.data.feature_fill import Encoder, FillOptions
from sensorium.data.features import FeatureStore, cached, default_root
from sensorium.data.items import SPLITS
from sensorium.data.tastes import Places, Taste, read_styles, read_tastes, with_styles
from sensorium.engine.contract import Host, Sources
from sensorium.engine.seeds import derive, generator
from sensorium.engine.settings import RunConfig
from sensorium.errors import ConfigError, DataError
from sensorium.families.pmg.conditioning import lengths_of
from sensorium.families.pmg.config import RANDOM, DataConfig, ModelConfig
from sensorium.families.pmg.data import EvalSource, Frozen, SortableSource, Split, TrainSource
from sensorium.families.pmg.diffusion import DiffusionShape, read_shape
from sensorium.families.pmg.encoders import TextStates, VaeMoments
from sensorium.families.pmg.folders import base_digests, diffusion_folder, llm_folder
from sensorium.families.pmg.language import open_tokenizer, read_config, trunk_shape
from sensorium.families.pmg.model import Sizes
from sensorium.families.pmg.prompts import Prompts, template_of
from sensorium.families.pmg.task import require_trainable, sections
from sensorium.families.pmg.toy import toy_folder


def sources(config: RunConfig, host: Host) -> Sources:
    """Read the samples, encode what the cache lacks, ask the questions. Raises ConfigError and DataError."""
    model, data = sections(config)
    _make(model, data, host)
    require_trainable(model)
    folder = diffusion_folder(model, host.say)
    shape = read_shape(folder, model.stable_diffusion)
    if data.image_size != shape.native:
        host.say(f"data.image_size {data.image_size} is not the {shape.native} that this Stable Diffusion was made for")
    counts = sizes_of(model).counts()
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    host.say(f"adapter: {parts}; {sum(counts.values()):,} in all")
    prompts = open_prompts(model, data)
    tastes = read_splits(data)
    if data.limit_train is not None:
        tastes["train"] = limited(tastes["train"], data.limit_train, config.seed)
    if strangers(data, tastes["train"]):
        host.say(
            "targets are stickers of other themes than the histories, which say nothing of them: no taste can be "
            "learned from these samples; target=same_theme makes others"
        )
    for split, found in tastes.items():
        host.say(f"{split}: {len(found):,} samples of {len({one.user for one in found}):,} users")
    frozen = encode([one for found in tastes.values() for one in found], config, folder, shape, host)
    questions = {split: _questions(prompts, found, split, host.say) for split, found in tastes.items()}
    sides = shape.latent_sides(data.image_size)
    splits = {
        split: Split(found, questions[split], frozen, model, sides, prompts.padding) for split, found in tastes.items()
    }
    held = {
        split: EvalSource(splits[split], partners(splits[split], splits["train"]), number)
        for number, split in enumerate(SPLITS[1:])
        if split in splits
    }
    train = splits["train"]
    kind = SortableSource if model.pad_to == "longest" else TrainSource
    return Sources(kind(train), held.get("val"), held.get("test"), shared=train.histories)


def _make(model: ModelConfig, data: DataConfig, host: Host) -> None:
    """Random models and made-up data, by one process alone: the libraries write files on the first one only."""
    if host.rank == 0:
        if model.llm == RANDOM:
            llm_folder(model)
        if model.stable_diffusion == RANDOM:
            diffusion_folder(model)
        if data.toy is not None:
            toy_folder(data.toy)
    host.barrier()


def facts(config: RunConfig, found: Sources) -> dict[str, Any]:
    """What use needs besides the configuration, and by what the frozen models are known."""
    del found
    model, data = sections(config)
    return {
        "precision": config.train.precision,
        "template": template_of(data.name, model.prompt_template),
        "sizes": sizes_of(model).plain(),
        "bases": base_digests(model),
    }


def open_prompts(model: ModelConfig, data: DataConfig, template: str | None = None) -> Prompts:
    """How histories become questions. ``template``: that of a trained adapter."""
    tokenizer = open_tokenizer(llm_folder(model, weights=False), model.llm)
    longest = model.max_sequence_length - model.num_image_prompt
    return Prompts(tokenizer, template or template_of(data.name, model.prompt_template), longest)


def read_splits(data: DataConfig) -> dict[str, list[Taste]]:
    """The samples of each split that is there. Raises ConfigError where no training data are named, and DataError."""
    if data.toy is not None:
        root = toy_folder(data.toy)
        return {split: read_tastes(root / f"{split}.json", Places()) for split in SPLITS}
    styles = read_styles(Path(data.user_preferences).expanduser()) if data.user_preferences else None
    if data.manifest is not None:
        return _of_manifest(Path(data.manifest).expanduser(), data.history, styles)
    given = {"train": data.train_json, "val": data.val_json, "test": data.test_json}
    if data.train_json is None:
        raise ConfigError(
            "data.train_json is missing: the processed samples to train on; or set data.manifest, or data.toy={}"
        )
    paths = {split: Path(path).expanduser() for split, path in given.items() if path is not None}
    problems, found = [], {}
    for split, path in paths.items():
        try:
            found[split] = read_tastes(path, places_of(data), styles)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return found


def _of_manifest(root: Path, history: int | None, styles: Mapping[str, str] | None) -> dict[str, list[Taste]]:
    """The samples of a native data set: groups are users. Raises DataError."""
    found = histories.tastes(readers.read("native", root), history)
    if "train" not in found:
        raise DataError(f"{root}: no sample in split train; there are samples in {', '.join(found)}")
    return {split: with_styles(found[split], styles) for split in SPLITS if split in found}


def places_of(data: DataConfig) -> Places:
    """Where the configuration says that pictures lie."""
    return Places(Path(data.image_dir).expanduser() if data.image_dir else None, data.path_prefix)


def strangers(data: DataConfig, tastes: Sequence[Taste]) -> bool:
    """Whether these are samples of SER30K (ids THEME/NAME) most of whose targets are of another theme."""
    foreign = sum("/" in one.target.id and one.target.id.rpartition("/")[0] != one.user for one in tastes)
    return data.name == "SER" and foreign > len(tastes) / 2


def limited(tastes: Sequence[Taste], count: int, seed: int) -> list[Taste]:
    """The first of them in an order that the seed draws."""
    order = generator(seed, "limit_train").permutation(len(tastes))[:count]
    return [tastes[int(number)] for number in order]


def encode(tastes: Sequence[Taste], config: RunConfig, folder: Path, shape: DiffusionShape, host: Host) -> Frozen:
    """Pictures and texts in the feature cache; VAE and text encoder are opened only where it lacks something."""
    model, data = sections(config)
    lengths = lengths_of(model.conditioning, shape.text_length, model.num_image_prompt)
    policy = config.loader.bad_samples

    def filled(encoder: Encoder, contents: Iterable[Any]) -> FeatureStore:
        wanted = list(dict.fromkeys(contents))
        with host.progress(encoder.name, len(wanted)) as advance:
            options = FillOptions(
                policy=policy, rank=host.rank, world_size=host.world, barrier=host.barrier,
                progress=advance, say=host.say,
            )  # fmt: skip
            return cached(encoder, wanted, default_root(), options)

    def texts(length: int, contents: Iterable[str]) -> FeatureStore:
        return filled(TextStates(folder, shape, length, host.device), contents)

    captions = [one.target.caption for one in tastes]
    return Frozen(
        shape,
        filled(VaeMoments(folder, shape, data.image_size, data.resize, host.device), (t.target.path for t in tastes)),
        texts(shape.text_length, ["", *captions]),
        texts(lengths.target, captions) if lengths.target else None,
        texts(lengths.style, ["", *(one.style for one in tastes)]) if lengths.style else None,
    )


def _questions(prompts: Prompts, tastes: Sequence[Taste], split: str, say: Callable[[str], None]) -> list[list[int]]:
    found, cut = [], 0
    for one in tastes:
        ids, shortened = prompts.encode([liked.caption for liked in one.history])
        found.append(ids)
        cut += shortened
    if cut:
        say(f"{split}: captions of {cut:,} histories were cut to fit model.max_sequence_length")
    return found


def partners(split: Split, train: Split) -> list[Sequence[int]] | None:
    """For each sample the question about the history of another user, of the same split where it has one, else of the
    training split; None where all are one user's."""
    found = []
    for number, taste in enumerate(split.tastes):
        for pool in (split, train):
            others = [place for place, one in enumerate(pool.tastes) if one.user != taste.user]
            if others:
                found.append(pool.questions[others[derive(0, "other user", number) % len(others)]])
                break
        else:
            return None
    return found


def sizes_of(model: ModelConfig) -> Sizes:
    """Of the adapter that a configuration makes, from the configurations of its base models alone."""
    trunk = trunk_shape(read_config(llm_folder(model, weights=False), model.llm))
    told = read_shape(diffusion_folder(model), model.stable_diffusion).told
    return Sizes.of(trunk, told, model.num_image_prompt, model.num_prefix_prompt)
