"""Files of a trained adapter: the format of ``exported.py``, with the adapter's tensors and nothing frozen.

```
FOLDER/
    model.safetensors   image prompt, prefix and mapping, float32
    config.json         sizes, mode, template, names and digests of the base models; sealed
    README.md           the model card
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sensorium import exported, families, stored
from sensorium.engine.contract import Loaded
from sensorium.engine.settings import RunConfig
from sensorium.errors import CheckpointError
from sensorium.families.pmg.config import ModelConfig
from sensorium.families.pmg.folders import base_digests
from sensorium.families.pmg.model import PMGAdapter, Sizes
from sensorium.families.pmg.task import PMGTask
from sensorium.files import new_folder

_NAME, _AVERAGE = "adapter.", "average."
_PLAIN = {"ema_decay": 0.0, "standardise": 0}  # of an adapter that is what it does
_TRAINING_DATA = {"train_json", "val_json", "test_json", "image_dir", "path_prefix", "user_preferences", "toy"}
_USE = """```python
import sensorium

model = sensorium.load(FOLDER)  # this folder; the frozen models come from `model` of config.json
picture = model.draw(["a red circle", "a red ring"], "a square")
```

`sensorium generate FOLDER --data test.json --out pictures` draws for all samples of a file."""
_LIMITS = """- It works with the base models that it was trained on, and with no others.
- What it knows of a user is in the captions of the history, nothing else."""


def write_adapter(loaded: Loaded, folder: Path) -> str:
    """Export of a run; with a moving average that one is the adapter."""
    whole = without_average(loaded)
    assert isinstance(whole.task, PMGTask)
    weights = exported.write_weights(folder, whole)
    exported.write_config(folder, description(whole))
    sizes = Sizes(**loaded.facts["sizes"])
    exported.write_card(folder, _card(whole.config, sizes, whole.checkpoint.name, exported.results_text(loaded)))
    return f"{sum(sizes.counts().values()):,} parameters, {weights.stat().st_size / 1e6:.1f} MB"


def write_trained(folder: Path, found: stored.Stored) -> None:
    """Weights and ``config.json`` from what a checkpoint stores; no frozen model is opened for that."""
    weights = {f"{_NAME}{name}": value for name, value in adapter_values(found.weights).items()}
    exported.write_tensors(folder, weights)
    config = _without_average(found.config)
    described = exported.describe_config(config, "hf", _data_of_use(config), found.facts)
    made = {**described, "checkpoint": found.origin.name, "frozen": found.frozen}
    exported.write_config(folder, exported.of_weights(made, weights))


def write_trained_card(folder: Path, found: stored.Stored, results: str) -> None:
    """The model card of ``write_trained``. ``results``: Markdown."""
    card = _card(found.config, Sizes(**found.facts["sizes"]), found.origin.name, results)
    exported.write_card(folder, card)


def description(loaded: Loaded) -> dict[str, Any]:
    """The content of ``config.json``. The loaded model has no moving average."""
    return exported.describe(loaded, "hf", _data_of_use(loaded.config), loaded.facts)


def _data_of_use(config: RunConfig) -> dict[str, Any]:
    return config.data.model_dump(mode="json", exclude=_TRAINING_DATA)


def _without_average(config: RunConfig) -> RunConfig:
    """Of an adapter whose values are those of its moving average, for states as they are."""
    return config.model_copy(update={"model": config.model.model_copy(update=_PLAIN)})


def without_average(loaded: Loaded) -> Loaded:
    """The same model, whose adapter has the values of its moving average, if there is one, for states as they are."""
    task = loaded.task
    assert isinstance(task, PMGTask)
    if task.average is None and task.adapter.mean_H is None:
        return loaded
    model = task.settings.model_copy(update={**_PLAIN, "gradient_checkpointing": False})
    plain = PMGTask(model, task.shape, task.llm, task.unet, task.alphas_T)
    average = {} if task.average is None else task.average.values()
    plain.adapter.load_state_dict(for_plain_states(task.adapter.state_dict() | average))
    return replace(loaded, task=plain.eval(), config=_without_average(loaded.config))


def _card(config: RunConfig, sizes: Sizes, checkpoint: str, results: str) -> str:
    model = config.model
    assert isinstance(model, ModelConfig)
    parts = ", ".join(f"{name} {count:,}" for name, count in sizes.counts().items())
    head = (
        "---\nlibrary_name: sensorium\npipeline_tag: text-to-image\n"
        "tags: [sensorium, pmg, stable-diffusion, personalised]\n---\n\n"
        f"# A user's taste: soft prompts from `{model.llm}` to `{model.stable_diffusion}`\n\n"
        f"{sum(sizes.counts().values()):,} parameters ({parts}), conditioning {model.conditioning}; from "
        f"{checkpoint} of a run on {getattr(config.data, 'name', '')}.\n"
    )
    sections = {"Use": _USE, "Results": results, "Limits": _LIMITS}
    return head + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())


def read_adapter(folder: Path) -> PMGAdapter:
    """See ``PMGAdapter.from_pretrained``."""
    found = find(folder)
    adapter = PMGAdapter(Sizes(**found.facts["sizes"]))
    give(adapter, found)
    adapter.described = {} if not exported.is_export(folder) else exported.read_config(folder)
    return adapter.eval()


def find(folder: Path) -> stored.Stored:
    """Whatever holds an adapter: a run, an export. Raises CheckpointError."""
    found = stored.find(families.load("pmg"), folder.expanduser())
    try:
        Sizes(**found.facts["sizes"])
        _ = found.facts["template"], found.facts["bases"], found.facts["precision"]
    except (LookupError, TypeError) as error:
        raise CheckpointError(f"{folder}: describes no adapter of pmg ({error})") from None
    return found


def give(adapter: PMGAdapter, found: stored.Stored) -> None:
    """Give an adapter the stored weights, of a moving average if there is one; every tensor, of the right shape.
    Raises CheckpointError."""
    values = adapter_values(found.weights)
    wanted = dict(adapter.named_parameters())
    wrong = sorted(wanted.keys() ^ values.keys()) or [n for n in wanted if wanted[n].shape != values[n].shape]
    if wrong:
        raise CheckpointError(f"{found.origin}: does not fit an adapter of these sizes, for example at {wrong[0]!r}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(values[name])


def begin_with(task: nn.Module, config: RunConfig) -> None:
    """Give a new run the adapter that ``model.start_from`` names (contract.Family.initial).

    Raises CheckpointError, also for one that was trained with other base models.
    """
    model = config.model
    assert isinstance(model, ModelConfig)
    assert isinstance(task, PMGTask)
    if model.start_from is None:
        return
    found = find(Path(model.start_from))
    now = base_digests(model)
    if other := [part for part, digest in found.facts["bases"].items() if now.get(part) != digest]:
        raise CheckpointError(f"{found.origin}: was trained with another {', '.join(other)}; give that one")
    give(task.adapter, found)
    if task.average is not None:
        task.average.update(task.adapter, 0.0)


def adapter_values(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of the adapter by their own names, from the names of a task."""
    found = {name.removeprefix(_NAME): value for name, value in weights.items() if name.startswith(_NAME)}
    average = {name: value for name, value in weights.items() if name.startswith(_AVERAGE)}
    averaged = {name.removeprefix(_AVERAGE).replace("/", "."): value for name, value in average.items()}
    return for_plain_states(found | averaged)


def for_plain_states(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of an adapter that does the same to states as they are; ``mean_H`` and ``spread_H`` are taken in."""
    found = {name: value for name, value in values.items() if name not in ("mean_H", "spread_H")}
    if "mean_H" in values:
        weight = values["mapping.weight"].double() / values["spread_H"].double()
        bias = values["mapping.bias"].double() - weight @ values["mean_H"].double()
        found |= {"mapping.weight": weight.float(), "mapping.bias": bias.float()}
    return found


def save_adapter(adapter: PMGAdapter, folder: Path) -> None:
    """See ``PMGAdapter.save_pretrained``."""
    if not adapter.described:
        raise CheckpointError(
            f"{folder}: this adapter says nothing of its base models; open it with `sensorium.load` or from an export"
        )
    weights = {f"{_NAME}{name}": value for name, value in adapter.state_dict().items()}
    with new_folder(folder) as new:
        exported.write_tensors(new, weights)
        exported.write_config(new, exported.of_weights(adapter.described, weights))
        exported.write_card(new, f"# Adapter of `pmg`\n\n## Use\n\n{_USE}\n\n## Limits\n\n{_LIMITS}\n")
