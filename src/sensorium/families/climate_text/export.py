"""Export of a trained `climate_text` model: ``hf``, what was trained, with the tokenizer of its language model."""

from __future__ import annotations

from pathlib import Path

from sensorium import exported
from sensorium.engine.contract import Loaded
from sensorium.families.climate_text.llm import open_tokenizer
from sensorium.families.climate_text.task import sections
from sensorium.files import write_by_library

_TRAINING_DATA = {"train_path", "val_path", "test_path", "demo", "cache", "variables"}  # where the data lay
_USE = """```python
import sensorium

model = sensorium.load(FOLDER)  # this folder; the frozen parts come from `model` of config.json
print(model.answer("Where is the strongest anomaly?", "field.nc"))
```"""
_LIMITS = """- An answer is as good as its training texts; `sensorium evaluate RUN` says if the field is used at all.
- Fields must have the channels and units listed above; other regions, grids and sources than those of training are
  answered without a warning.
- It is no forecast and no substitute for one."""


def write_hf(loaded: Loaded, folder: Path) -> str:
    """Write ``model.safetensors``, ``config.json``, ``tokenizer/`` and ``README.md``; the format of ``exported.py``."""
    model, data = sections(loaded.config)
    weights = exported.write_weights(folder, loaded)
    content = data.model_dump(mode="json", exclude=_TRAINING_DATA)
    exported.write_config(folder, exported.describe(loaded, "hf", content, loaded.facts))
    write_by_library(folder / "tokenizer", open_tokenizer(model).save_pretrained)
    size = sum(p.numel() for p in loaded.task.parameters() if p.requires_grad)
    names = loaded.facts["names"]
    encoder = "Prithvi WxC" if model.climate_encoder == "prithvi" else "a trained grid ViT"
    head = (
        "---\nlibrary_name: sensorium\npipeline_tag: text-generation\n"
        "tags: [sensorium, climate-text, weather]\n---\n\n"
        f"# {loaded.config.family}: fields into `{model.llm}`\n\n"
        f"{size:,} trained parameters between {encoder} and the language model, fusion {model.fusion_mode}. "
        f"It reads {len(names)} channels ({', '.join(names[:12])}{' …' if len(names) > 12 else ''}).\n"
    )
    parts = {"Use": _USE, "Results": exported.results_text(loaded), "Limits": _LIMITS}
    exported.write_card(folder, head + "".join(f"\n## {title}\n\n{text}\n" for title, text in parts.items()))
    return f"{size:,} parameters, {weights.stat().st_size / 1e6:.1f} MB; sensorium.load(FOLDER) reads it"
