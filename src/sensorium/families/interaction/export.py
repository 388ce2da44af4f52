"""Export of a trained `interaction` model: format ``hf``, which ``sensorium.load`` reads back."""

from __future__ import annotations

from pathlib import Path

from sensorium import exported
from sensorium.data import readers
from sensorium.engine.contract import Loaded
from sensorium.families.interaction.data import DataConfig
from sensorium.families.interaction.task import InteractionTask

_TRAINING_DATA = {"sets", "batches", "cache", "keep_pictures"}  # an export knows nothing of where the data lay
_USE = """```python
import sensorium

model = sensorium.load(FOLDER)  # this folder
query = model.encode({"text": "a barking dog"})
score = model.encode({"image": "photo.jpg"}) @ query  # a cosine
```

There is no index of data in here: `model.search` works on a run."""
_LIMITS = """- Scores are cosines, not probabilities, and compare only with vectors of this very model.
- It knows what its training data show, with their gaps and biases; measure it on yours."""


def write_hf(loaded: Loaded, folder: Path) -> str:
    """Write ``model.safetensors``, ``config.json`` and ``README.md`` into ``folder``; the format of ``exported.py``."""
    config = loaded.config
    assert isinstance(config.data, DataConfig)
    assert isinstance(loaded.task, InteractionTask)
    weights = exported.write_weights(folder, loaded)
    data = config.data.model_dump(mode="json", exclude=_TRAINING_DATA)
    exported.write_config(folder, exported.describe(loaded, "hf", data, loaded.facts))
    size = sum(parameter.numel() for parameter in loaded.task.model.parameters())
    head = (
        "---\nlibrary_name: sensorium\npipeline_tag: feature-extraction\n"
        f"tags: [sensorium, retrieval, {', '.join(loaded.facts['modalities'])}]\n---\n\n"
        f"# {config.family}, preset {config.preset}\n\n"
        f"Three towers for texts, pictures and sound, trained from scratch into one space of "
        f"{loaded.task.config.embedding} numbers, and a fusion for any of them together; {size:,} parameters.\n"
    )
    sections = {
        "Use": _USE,
        "Training": _training(loaded),
        "Results": exported.results_text(loaded),
        "Licence": _licence(loaded, config.data),
        "Limits": _LIMITS,
    }
    exported.write_card(folder, head + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items()))
    return f"{size:,} parameters, {weights.stat().st_size / 1e6:.1f} MB; sensorium.load(FOLDER) reads it"


def _training(loaded: Loaded) -> str:
    if exported.is_export(loaded.run):
        return f"Exported from an export (`{loaded.run.name}`), whose card tells more."
    sets = ", ".join(f"`{name}`" for name in loaded.facts["sets"])
    return f"Data sets: {sets}. Checkpoint `{loaded.checkpoint.name}` of a run with seed {loaded.config.seed}."


def _licence(loaded: Loaded, data: DataConfig) -> str:
    trained = "Those of the data: see the original run."
    if not exported.is_export(loaded.run):
        rows = ((f"`{name}` ({one.reader})", readers.load(one.reader).LICENCE) for name, one in data.sets.items())
        trained = "Those of the training data:\n\n" + exported.table(("set", "licence"), rows)
    return f"None was chosen for these weights. {trained}\n\nSee that they allow what you mean to do."
