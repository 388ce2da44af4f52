"""What the feature cache saves: encoding anew in every epoch, as the guides' own trainers do, against the cache.

    OMP_NUM_THREADS=1 python benchmarks/feature_cache.py

Encoders of the real classes and sizes of the guide (E5-small, CLIP ViT-B/32, Whisper-tiny at its 30 s window) with
random weights: the same work, nothing to download. The data: JPEGs of Flickr8k's size, captions, recordings of 4 s.
Re-encoding counts decoding and preprocessing, in batches of 8. Rows a second of: the supply of features alone; an epoch
of linear heads; an epoch of the full model of the guide, batch 8. "Twice" is what the published original does: it runs
every encoder two times a step. Ends with an error if supply or linear heads gain less than 20 times.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from common import machine, median, side_by_side, spread, table
from PIL import Image
from torch import nn

from sensorium import families
from sensorium.engine import optim, settings
from sensorium.engine.contract import Batch, Host, Sources

BATCH, SECONDS, RATE = 8, 4, 16_000
EPOCHS = {"supply": 30, "linear heads": 30, "full model": 2}  # over the few rows from the cache; one with encoding
WORK = ("supply", "linear heads", "full model")
ARMS = [(work, way) for work in WORK for way in ("cached", "live", *(("twice",) if work == "full model" else ()))]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WORDS = ("dog", "man", "woman", "child", "runs", "jumps", "over", "grass", "water", "red", "blue", "ball", "street")


def make_data(folder: Path, rows: int, seconds: int = SECONDS) -> None:
    """The native format: pictures, captions, recordings."""
    draw = np.random.default_rng(0)
    lines = []
    for row in range(rows):
        small = draw.integers(0, 255, (12, 16, 3), np.uint8)
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{row}.jpg", quality=90)
        soundfile.write(folder / f"{row}.wav", 0.1 * draw.standard_normal(seconds * RATE), RATE)
        text = " ".join(draw.choice(WORDS, 11))
        item = {"id": str(row), "group": str(row), "split": "train", "text": text}
        lines.append(json.dumps({**item, "image": f"{row}.jpg", "audio": f"{row}.wav"}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def make_encoders(folder: Path) -> None:
    """Local folders of the real classes, random weights."""
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizer,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperModel,
    )

    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", ":", *WORDS]
    text = BertConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536)
    BertModel(text).save_pretrained(folder / "e5-small")
    BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)}).save_pretrained(folder / "e5-small")
    CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=32)).save_pretrained(folder / "clip")
    CLIPImageProcessorPil().save_pretrained(folder / "clip")
    sound = WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536)
    sound.update({"decoder_layers": 1, "decoder_attention_heads": 6})
    WhisperModel(sound).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor().save_pretrained(folder / "whisper")


def config_of(folder: Path, preset: str, *, cached: bool) -> settings.RunConfig:
    data = {
        "reader": "native",
        "root": str(folder / "data"),
        "text_encoder": str(folder / "e5-small"),
        "image_encoder": str(folder / "clip"),
        "audio_encoder": str(folder / "whisper"),
        "cache": str(folder / "cache"),
        "use_cache": cached,
    }
    return settings.resolve(families.load("thinking"), preset, {"data": data, "train": {"batch_size": BATCH}})


def batches(found: Sources, twice: bool) -> Iterator[Batch]:
    source = found.train
    for start in range(0, len(source), BATCH):
        for _ in range(2 if twice else 1):
            batch = source.collate([source.example(row, 0) for row in range(start, min(start + BATCH, len(source)))])
        yield {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def trainer(config: settings.RunConfig, found: Sources) -> Callable[[Batch], None]:
    """A bare step: forward, backward, clip, AdamW."""
    family = families.load("thinking")
    width = {"text": (384, 384, False), "image": (768, 512, True), "audio": (384, 384, False)}
    names = ("width", "pooled_width", "has_vector")
    facts = {m: {**dict(zip(names, values, strict=True)), "mean": [0.0] * values[1]} for m, values in width.items()}
    task: nn.Module = family.task(config, {"modalities": facts}).to(DEVICE).train()
    optimizer = optim.build(dict(task.named_parameters()), family.group, config.optim, {})

    def step(batch: Batch) -> None:
        task({**batch, "step": torch.tensor(0)}).loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def run_arm(folder: Path, work: str, way: str) -> dict[str, float]:
    config = config_of(folder, "probe" if work == "linear heads" else "guide", cached=way == "cached")
    found = families.load("thinking").sources(config, Host(device=DEVICE))
    use: Callable[[Batch], Any] = trainer(config, found) if work != "supply" else lambda batch: None
    use(next(batches(found, False)))
    epochs = EPOCHS[work] if way == "cached" else 1
    begun = time.perf_counter()
    for _ in range(epochs):
        for batch in batches(found, way == "twice"):
            use(batch)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    return {"rows": len(found.train) * epochs / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--arm", nargs=2)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.arm:
        print(json.dumps(run_arm(given.folder, *given.arm)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        make_data(folder / "data", given.rows)
        make_encoders(folder)
        begun = time.perf_counter()
        families.load("thinking").sources(config_of(folder, "guide", cached=True), Host(device=DEVICE))
        filled = time.perf_counter() - begun
        arms = [("--folder", name, "--arm", *arm) for arm in ARMS]
        found = dict(zip(ARMS, side_by_side(__file__, arms, given.repeats), strict=True))
    rows, gains = [], {}
    for (work, way), results in found.items():
        gain = median(found[work, "cached"], "rows") / median(results, "rows")
        gains[work, way] = gain
        rows.append((work, way, spread(results, "rows"), f"{gain:.1f}"))
    print(machine())
    print(
        f"{given.rows} rows; filling the cache, once: {given.rows / filled:.2f} rows/s, opening the encoders included"
    )
    print(table(("work", "features", "rows/s", "cached is faster by"), rows))
    if min(gains["supply", "live"], gains["linear heads", "live"]) < 20:
        raise SystemExit("the cache gains less than 20 times")


if __name__ == "__main__":
    main()
