"""A realistic run folder without any training: what the report and its screenshots are made from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageDraw

from sensorium.engine.contract import Card, Evaluation, Gallery, Shown, Table
from sensorium.engine.files import json_line
from sensorium.engine.results import Result, write_result

SHAPES = ("circle", "square", "triangle", "hexagon", "octagon")
PAINTS = {"red": "#d33", "blue": "#36c", "green": "#2a7", "gold": "#c90"}
WORDS = [f"{paint} {shape}" for paint in PAINTS for shape in SHAPES]
DIRECTIONS = [
    f"{pair}/{way}"
    for pair, ways in {
        "image-text": ("i2t", "t2i"),
        "image-audio": ("i2a", "a2i"),
        "text-audio": ("t2a", "a2t"),
    }.items()
    for way in ways
]
STEPS = 640


def draw_picture(path: Path, words: str) -> None:
    """A shape on a transparent ground, larger than the report shows it."""
    paint, shape = words.split()
    image = Image.new("RGBA", (240, 240))
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((30, 30, 210, 210), fill=PAINTS[paint])
    else:
        sides = {"triangle": 3, "square": 4, "hexagon": 6, "octagon": 8}[shape]
        pen.regular_polygon((120, 120, 100), sides, fill=PAINTS[paint])
    image.save(path)


def sing(path: Path, number: int) -> None:
    """A tone of 0.8 s that swells and fades, at a rate that must be converted."""
    time = np.arange(int(0.8 * 22050)) / 22050
    tone = np.sin(2 * np.pi * (220 + 40 * number) * time) * np.sin(np.pi * time / 0.8) ** 2
    soundfile.write(path, 0.4 * tone, 22050)


def things(run: Path) -> list[dict[str, Shown]]:
    """A picture, words and a recording of each concept; paths relative to the run folder."""
    (run / "gallery").mkdir(parents=True)
    made = []
    for number, words in enumerate(WORDS):
        picture, recording = f"gallery/{number}.png", f"gallery/{number}.wav"
        draw_picture(run / picture, words)
        sing(run / recording, number)
        made.append(
            {"text": Shown(words), "image": Shown(words, image=picture), "audio": Shown(words, audio=recording)}
        )
    return made


def gallery(made: list[dict[str, Shown]], asked: str, found: str, seed: int) -> Gallery:
    """Queries of one modality, five hits of another; most are right somewhere, some nowhere."""
    draws = np.random.default_rng(seed)
    cards = []
    for number in range(8):
        order = [int(i) for i in draws.permutation(len(made)) if i != number][:5]
        if number != 5:
            order[int(min(draws.geometric(0.6) - 1, 4))] = number
        hits = tuple(
            Shown(**{**vars(made[i][found]), "right": i == number, "score": 0.9 - 0.11 * place})
            for place, i in enumerate(order)
        )
        cards.append(Card(made[number][asked], hits))
    return Gallery(f"{asked} to {found}", tuple(cards), "Held-out concepts, never seen in training.")


def judged(skill: float, galleries: tuple[Gallery, ...] = (), warnings: tuple[str, ...] = ()) -> Evaluation:
    """Retrieval numbers in six directions over 190 concepts."""
    metrics: dict[str, float] = {"R-Sum": 0.0, "chance/R-Sum": 16 * 100 / 190}
    rows: list[tuple[str | float | int | None, ...]] = []
    for place, name in enumerate(DIRECTIONS):
        recalls = [100 * (1 - math.exp(-skill * k**0.5 / (1 + 0.3 * place))) for k in (1, 5, 10)]
        metrics |= {f"{name}_R@{k}": value for k, value in zip((1, 5, 10), recalls, strict=True)}
        metrics |= {f"chance/{name}_R@{k}": 100 * k / 190 for k in (1, 5, 10)}
        metrics[f"{name}_MdR"] = 1.0 + place
        metrics["R-Sum"] += sum(recalls) / 6
        rows.append((name, *recalls, 1.0 + place, 190, 190))
    columns = ("direction", "R@1", "R@5", "R@10", "MdR", "queries", "gallery")
    table = Table("Retrieval", columns, tuple(rows), "Ties count against the model.")
    return Evaluation(metrics, (table,), galleries, warnings)


def write_lines(run: Path) -> None:
    """Metrics and times of a run that slowly gets better, with one skipped step, an alarm and a resume."""
    draws = np.random.default_rng(0)
    metrics, times = [], [{"step": 320, "resumed": True}]
    for step in range(1, STEPS + 1):
        loss = 4.2 * math.exp(-step / 170) + 0.6 + 0.12 * float(draws.normal())
        rate = 1e-3 * min(1, step / 60) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        metrics.append(
            {
                "kind": "train", "step": step, "epoch": step / 80, "stage": "train" if step > 160 else "align",
                "loss": math.nan if step == 333 else loss, "grad_norm": 0.4 + 0.2 * abs(float(draws.normal())),
                "lr/decay": rate, "lr/no_decay": rate, "loss/align": 0.8 * loss,
                "temperature/image-text": 14 + step / 40,
            }
        )  # fmt: skip
        times.append({"step": step, "seconds": 0.08, "rows_per_second": 800 + 60 * float(draws.normal())})
        if step == 333:
            text = "step 333: the loss is not finite; step skipped (1 in a row)"
            metrics.append({"kind": "event", "step": 333, "level": "warning", "text": text})
        if step % 80 == 0:
            progress = judged(0.2 + 0.7 * step / STEPS).metrics
            values = {"loss": 0.9 + 3 * math.exp(-step / 150), **progress, "chance/R-Sum": 8.0}
            metrics.append({"kind": "val", "step": step, "epoch": step / 80, "metrics": values})
    (run / "metrics.jsonl").write_text("".join(map(json_line, metrics)))
    (run / "times.jsonl").write_text("".join(map(json_line, times)))


def make_run(run: Path, alarm: bool = True) -> Path:
    """A complete run folder as the engine leaves it."""
    made = things(run)
    write_lines(run)
    if alarm:
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json_line({"kind": "event", "step": 500, "level": "alarm", "text": "not learning: at chance"}))
    config = (
        "family: thinking\npreset: demo\nseed: 0\nmodel:\n  width: 384\n  slots: 64\n  think_steps: [1, 4]\n"
        "data:\n  reader: twemoji\n  languages: [en]\ntrain:\n  epochs: 8.0\n  batch_size: 64\n  precision: fp32\n"
        "optim:\n  name: adamw\n  lr: 0.001\n  betas: [0.9, 0.999]\n"
        "checkpoint:\n  best_metric: R-Sum\n  best_mode: max\n"
    )
    (run / "config.yaml").write_text(config)
    documents = {
        "environment": {
            "sensorium": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "cpu_cores": 2,
            "gpu": None, "command": "sensorium demo --data twemoji", "started": "2025-11-21T05:40:12+00:00",
        },
        "facts": {"fingerprints": {"train": "emoji-1684"}, "facts": {"widths": {"text": 384, "image": 1280}}},
        "summary": {
            "parameters": {"trainable": 11815684, "frozen": 34360512},
            "seconds": {"encode": 96.4, "train": 71.2, "evaluate": 6.1, "report": 2.2},
            "peak_rss_bytes": 2134000000, "steps": STEPS, "best": {"step": 560, "metric": "R-Sum", "value": 171.8},
            "notes": ["The spoken names are synthetic (espeak-ng)."],
        },
    }  # fmt: skip
    for name, content in documents.items():
        (run / f"{name}.json").write_text(json.dumps(content))
    pairs = (("text", "image"), ("audio", "image"), ("image", "text"), ("text", "audio"))
    galleries = tuple(gallery(made, asked, found, seed) for seed, (asked, found) in enumerate(pairs))
    warnings = ("image-audio: 3 recordings are silent",)
    write_result(run, Result("test", judged(0.85, galleries, warnings), "test", 560, "step_00000560"))
    write_result(run, Result("linear_heads", judged(0.55, galleries[:1]), "test", 560, None))
    return run
