"""Export of a trained `thinking` model: format ``hf``, and the model card that all formats share.

The frozen encoders are not part of an export; their names and the digests of their weights are, and other encoders
are refused when the model is used. The queue of earlier negatives (``model.queue``) is left out: it holds embeddings of
training data and serves training alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from sensorium import exported
from sensorium.data import readers
from sensorium.data.items import Modality
from sensorium.engine.contract import Loaded
from sensorium.families.thinking.config import ModelConfig
from sensorium.families.thinking.data import DataConfig
from sensorium.families.thinking.task import ThinkingTask
from sensorium.families.thinking.use import ENCODERS, Searcher, identity_of
from sensorium.parts.encoders import FrozenEncoder

# Where the training data lay; an export knows nothing of it.
_TRAINING_DATA = {"reader", "root", "options", "cache", "cache_dtype", "use_cache"}
_EXAMPLES: dict[Modality, str] = {"text": "a barking dog", "image": "photo.jpg", "audio": "sound.wav"}


@dataclass(frozen=True)
class Parts:
    """What a format is written from: the model without what only training needs, its settings and its encoders."""

    loaded: Loaded
    task: ThinkingTask
    encoders: Mapping[Modality, FrozenEncoder]
    data: dict[str, Any]
    facts: dict[str, Any]


def parts_of(loaded: Loaded) -> Parts:
    """Opens the frozen encoders, for their digests. Raises ConfigError when one is not there any more."""
    lean = _without_queue(loaded)
    assert isinstance(lean.task, ThinkingTask)
    assert isinstance(lean.config.data, DataConfig)
    encoders = Searcher(lean).encoders
    data = lean.config.data.model_dump(mode="json", exclude=_TRAINING_DATA)
    data |= {f"{modality}_encoder": None for modality in ("text", "image", "audio") if modality not in encoders}
    if "text" in encoders:  # stated, as a folder of another name would not be known to want it
        data["text_prefix"] = encoders["text"].identity["prefix"]
    identities = {modality: identity_of(encoder) for modality, encoder in encoders.items()}
    return Parts(lean, lean.task, encoders, data, {**lean.facts, ENCODERS: identities})


def write_hf(loaded: Loaded, folder: Path) -> str:
    """Write ``model.safetensors``, ``config.json`` and ``README.md`` into ``folder``; the format of ``exported.py``."""
    parts = parts_of(loaded)
    weights = exported.write_weights(folder, parts.loaded)
    exported.write_config(folder, exported.describe(parts.loaded, "hf", parts.data, parts.facts))
    write_card(folder, parts, _loading(list(parts.encoders)))
    return f"{size_of(parts.task):,} parameters, {weights.stat().st_size / 1e6:.1f} MB; sensorium.load(FOLDER) reads it"


def size_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def write_card(folder: Path, parts: Parts, use: str) -> None:
    """Write ``README.md``. ``use``: Markdown that says how the files of this format are used."""
    config = parts.loaded.config
    assert isinstance(config.model, ModelConfig)
    sections = {
        "Use": use,
        "Training": _training(parts),
        "Frozen encoders": _encoders(parts),
        "Results": exported.results_text(parts.loaded),
        "Licence": _licence(parts),
        "Limits": _limits(parts),
    }
    senses = ", ".join(parts.encoders)
    head = (
        "---\nlibrary_name: sensorium\npipeline_tag: feature-extraction\n"
        f"tags: [sensorium, retrieval, {senses}]\n---\n\n"
        f"# {config.family}, preset {config.preset}\n\n"
        f"Maps {senses} into one space of {config.model.embedding_width} numbers, in which things that belong together "
        f"lie close. Kind `{config.model.kind}`, {size_of(parts.task):,} parameters over frozen encoders.\n"
    )
    text = head + "".join(f"\n## {title}\n\n{content}\n" for title, content in sections.items())
    exported.write_card(folder, text)


def _loading(modalities: list[Modality]) -> str:
    asked, found = modalities[:2]
    return (
        "```python\nimport numpy as np\nimport sensorium\n\n"
        "model = sensorium.load(FOLDER)  # this folder\n"
        f'query = model.encode({{"{asked}": "{_EXAMPLES[asked]}"}})\n'
        f'items = np.stack([model.encode({{"{found}": path}}) for path in ["{_EXAMPLES[found]}"]])\n'
        "scores = items @ query  # cosines\n```\n\n"
        "There is no index of data in here: `model.search` works on a run. Where an encoder lies elsewhere than it did "
        f'in training: `sensorium.load(FOLDER, data={{"{asked}_encoder": "PATH"}})`; one with other weights is refused.'
    )


def _training(parts: Parts) -> str:
    data, loaded = parts.loaded.config.data, parts.loaded
    assert isinstance(data, DataConfig)
    if exported.is_export(loaded.run):
        return f"Exported from an export (`{loaded.run.name}`), whose card tells more."
    reader = readers.load(data.reader)
    return (
        f"Data: `{reader.NAME}` ({reader.SUMMARY}). Checkpoint `{loaded.checkpoint.name}` of a run with seed "
        f"{loaded.config.seed}. The encoders were frozen: only the parameters in here were trained."
    )


def _encoders(parts: Parts) -> str:
    rows = [
        (modality, f"`{encoder.name}`", encoder.identity["class"], f"`{encoder.identity['weights']}`")
        for modality, encoder in parts.encoders.items()
    ]
    return (
        exported.table(("modality", "encoder", "class", "sha256 of its weights"), rows)
        + "\n\nThey are not in this folder: "
        + "`config.json` names them with all their preprocessing."
    )


def _licence(parts: Parts) -> str:
    data = parts.loaded.config.data
    assert isinstance(data, DataConfig)
    trained = "The data's licence: see the original run."
    if not exported.is_export(parts.loaded.run):
        trained = f"Licence of the training data (`{data.reader}`): {readers.load(data.reader).LICENCE}."
    return (
        f"None was chosen for these weights. {trained} Each frozen encoder has a licence of its own, which this folder "
        "does not change. See that both allow what you mean to do."
    )


def _limits(parts: Parts) -> str:
    data = parts.data
    lines = [
        "Scores are cosines, not probabilities, and compare only with vectors of this very model and these encoders.",
        "It knows what its training data and its encoders know, with their gaps and biases; measure it on yours.",
    ]
    if "text" in parts.encoders:
        lines.append(f"Of a text the first {data['max_tokens']} tokens count.")
    if "audio" in parts.encoders:
        lines.append(f"Of a recording the first {data['audio_max_seconds']:g} seconds count.")
    return "\n".join(f"- {line}" for line in lines)


def _without_queue(loaded: Loaded) -> Loaded:
    model = loaded.config.model
    assert isinstance(model, ModelConfig)
    assert isinstance(loaded.task, ThinkingTask)
    if not model.queue:
        return loaded
    lean = model.model_copy(update={"queue": 0})
    task = ThinkingTask(lean, loaded.task.facts, loaded.config.seed)
    task.load_state_dict({k: v for k, v in loaded.task.state_dict().items() if not k.startswith("queue.")})
    return replace(loaded, config=loaded.config.model_copy(update={"model": lean}), task=task.eval())
