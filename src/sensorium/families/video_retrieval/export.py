"""Exports of a trained `video_retrieval` model: ``hf`` (what was trained), ``merged`` (a CLIP for everybody) and
``embeddings`` (vectors of the data)."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np

from sensorium import exported
from sensorium.engine.contract import Loaded
from sensorium.families.video_retrieval.clip import to_hf
from sensorium.families.video_retrieval.shape import ClipShape
from sensorium.families.video_retrieval.task import VideoRetrievalTask, sections
from sensorium.families.video_retrieval.use import Searcher
from sensorium.files import open_file, write_file, write_json

_TRAINING_DATA = {"root", "train", "val", "test", "cache", "options", "frame_cache"}  # where the data lay
_USE = """```python
import sensorium

model = sensorium.load(FOLDER)  # this folder; CLIP itself comes from `model.clip` of config.json
hits = model.within("videos/").search({"text": "a dog rowing a boat"}, k=5)
event = model.retrieve_event("videos/boat.mp4", "a dog jumps into the water")
```"""
_LIMITS = """- Scores are cosines, not probabilities, and compare only with vectors of this very model.
- Segments come from frames' scores; nothing was trained to find them.
- It knows what CLIP and its training videos show, with their gaps and biases; measure it on yours."""


def write_hf(loaded: Loaded, folder: Path) -> str:
    """Write ``model.safetensors``, ``config.json`` and ``README.md`` into ``folder``; the format of ``exported.py``."""
    config = loaded.config
    model, data = sections(config)
    assert isinstance(loaded.task, VideoRetrievalTask)
    weights = exported.write_weights(folder, loaded)
    content = data.model_dump(mode="json", exclude=_TRAINING_DATA)
    exported.write_config(folder, exported.describe(loaded, "hf", content, loaded.facts))
    size = sum(p.numel() for p in loaded.task.parameters() if p.requires_grad)
    head = (
        "---\nlibrary_name: sensorium\npipeline_tag: video-classification\n"
        "tags: [sensorium, video-retrieval, clip]\n---\n\n"
        f"# {config.family}, kind {model.kind}\n\n"
        f"Text-video retrieval: {size:,} trained parameters over `{model.clip}`, {loaded.task.model.frames} frames a "
        f"video. Tokens by block: {loaded.task.model.plan.trace()}.\n"
    )
    sections_ = {"Use": _USE, "Results": exported.results_text(loaded), "Limits": _LIMITS}
    exported.write_card(folder, head + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections_.items()))
    return f"{size:,} parameters, {weights.stat().st_size / 1e6:.1f} MB; sensorium.load(FOLDER) reads it"


def write_merged(loaded: Loaded, folder: Path) -> str:
    """Write a folder that ``transformers.CLIPModel.from_pretrained`` and ``model.clip`` read: CLIP with LoRA added to
    its weights. Merging, joining and prompters have no place in a CLIP; the line says what is left out."""
    assert isinstance(loaded.task, VideoRetrievalTask)
    model = copy.deepcopy(loaded.task.model)
    model.fold_lora()
    tensors = to_hf(model.clip)
    exported.write_tensors(folder, tensors)
    write_json(folder / "config.json", clip_config(model.clip.shape))
    words = Searcher(loaded).media.words
    write_file(folder / "tokenizer.json", words.tokenizer.to_str().encode())
    size = sum(tensor.numel() for tensor in tensors.values())
    left = [name for name, on in vars(model.on).items() if on and name not in ("lora", "everywhere")]
    without = f"; without what a CLIP cannot do: {', '.join(left)}" if left else ""
    return f"{size:,} parameters of a CLIP; transformers.CLIPModel and model.clip=FOLDER read it{without}"


def clip_config(shape: ClipShape) -> dict[str, object]:
    """``config.json`` of a ``transformers.CLIPModel``."""
    vision = {
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "image_size": shape.resolution,
        "patch_size": shape.patch,
        "hidden_act": shape.activation,
        "layer_norm_eps": shape.eps,
        "projection_dim": shape.embed,
    }
    text = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.text_width,
        "intermediate_size": shape.text_inner,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": shape.text_heads,
        "max_position_embeddings": shape.context,
        "hidden_act": shape.text_activation,
        "layer_norm_eps": shape.text_eps,
        "projection_dim": shape.embed,
        "bos_token_id": shape.eot_id - 1,
        "eos_token_id": shape.eot_id,
        "pad_token_id": shape.eot_id,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": shape.embed,
        "vision_config": vision,
        "text_config": text,
    }


def write_embeddings(loaded: Loaded, folder: Path) -> str:
    """Write ``video.npy`` and ``text.npy`` ``[N, E]`` float32, unit vectors, and ``items.json``: what each row is."""
    rows = Searcher(loaded).embeddings()
    listed = {}
    for name, (items, matrix) in rows.items():
        with open_file(folder / f"{name}.npy", "wb") as file:
            np.save(file, matrix)
        listed[name] = items
    write_json(folder / "items.json", listed)
    counts = ", ".join(f"{len(items):,} of {name}" for name, items in listed.items())
    return f"vectors: {counts}"
