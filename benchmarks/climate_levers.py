"""What each of six choices of `climate_text` saves: processor time and memory, beside the same step without it.

    OMP_NUM_THREADS=1 python benchmarks/climate_levers.py --llm SMOLLM2
    python benchmarks/climate_levers.py --repeats 1 --levers head graph      # a random language model: a minute

`head`: logits of the target's tokens alone, or of all. `graph`: gradients from the first gated block on, or from the
embeddings, as adapters commonly ask for (`enable_input_require_grads`). `tokens`: 256 or 1024 tokens of the same
patches; a frozen encoder made them, so that the step has the fusion and the language model alone. `files` and `kept`:
fields mapped from the disk, or read whole, to train on them, and where only their tokens are wanted, of which the file
says no more than that it is there (it lay in memory, a slow disk would show more). `sort`: the rows of an epoch in any
order, or sorted by length (`loader.sort_window`); short questions and reports, which are the summaries of the made-up
weather, an entry in seven, as long as prompts are otherwise.

SMOLLM2: a Hugging Face folder of a causal language model, frozen. Prompts are lengthened to `--prompt` tokens by
repetition, as made-up weather has short ones. A step is forward and backward pass and AdamW, without checkpointing of
activations; a sample of `files` and `kept` is read and normalised. Each arm runs in a process of its own, the first
step is for warming up. Memory is what is used at most beside what stays from step to step (weights and state of the
optimizer): resident memory, or of a GPU what is allocated. Both arms must compute the same, or the script ends: losses
of the first and the last step, of `tokens` the first loss, while gates are shut, and the mean of the tokens; of files
all numbers; of `sort` the loss of an epoch, in which the weights stay (a rate of 0).
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import RESIDENT, Result, clock, machine, median, side_by_side, table, words_of
from torch import Tensor
from torch.nn import functional

from sensorium import families, tensor_files
from sensorium.data.fields.facts import KINDS
from sensorium.engine import settings
from sensorium.engine.backend import Backend
from sensorium.engine.check_memory import read_peak, reset_peak
from sensorium.engine.contract import Batch
from sensorium.engine.order import order_of, rows_at
from sensorium.engine.seeds import derive
from sensorium.families.climate_text.controls import asked as asked_of
from sensorium.families.climate_text.data import TrainSource
from sensorium.families.climate_text.sources import SortableSource
from sensorium.parts.attention import full_precision

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FAMILY = families.load("climate_text")
GIGABYTE = 2**30
PATCHES = 1024  # of 64 x 64 points, two by two


@dataclass(frozen=True)
class Lever:
    """``without`` and ``with_it`` name the arms. ``off``: how far their numbers may lie apart, as a share: float32 adds
    in another order, kept tokens have 16 bits, files are what they are."""

    without: str
    with_it: str
    same: tuple[str, ...]
    off: float


LEVERS: Mapping[str, Lever] = {
    "head": Lever("logits of all positions", "of the target's alone", ("first", "last"), 1e-5),
    "graph": Lever("gradients down to the embeddings", "down to the first block", ("first", "last"), 1e-5),
    "tokens": Lever("1024 climate tokens", "256, means of four", ("first", "mean"), 1e-4),
    "sort": Lever("rows in any order", "sorted by length", ("epoch",), 1e-5),
    "files": Lever("fields read whole", "mapped", ("sum",), 0.0),
    "kept": Lever("tokens kept, fields read whole", "mapped", ("sum",), 0.0),
}


def configured(given: argparse.Namespace) -> settings.RunConfig:
    """A run of a frozen language model over kept tokens of an encoder of random weights; of `files` over fields."""
    tokens = PATCHES if given.arm == "tokens" and not given.saved else PATCHES // 4
    layer: dict[str, Any] = {
        "model": {
            **{"llm": given.llm, "freeze_llm": True, "climate_encoder": "prithvi", "random_init": True},
            **{"prithvi": {"width": 256, "blocks": 0, "heads": 4}, "max_climate_tokens": tokens},
            **{"climate_dropout": 0.0, "num_fusion_layers": 1 if given.llm == "random:tiny" else 4},
        },
        "data": {
            "demo": {
                **{"num_samples": given.samples, "shape": [2, 160, 64, 64], "val_fraction": 0.25},
                "questions": len(KINDS) if given.arm == "sort" else 1,
            },
            "cache": given.arm != "files",
        },
        "train": {"steps": given.steps, "batch_size": given.rows, "precision": "fp32"},
    }
    return settings.resolve(FAMILY, "tiny", layer)


def opened(given: argparse.Namespace) -> tuple[settings.RunConfig, TrainSource, dict[str, Any]]:
    """The data, made or encoded where they are not there yet, and what the task needs of them."""
    config = configured(given)
    with Backend(config.train) as backend:
        found = FAMILY.sources(config, backend.host(quiet=True))
    assert isinstance(found.train, TrainSource)
    return config, found.train, FAMILY.facts(config, found)


def reports(source: TrainSource, given: argparse.Namespace) -> SortableSource:
    """The same split, whose summaries are repeated until entries have nearly the tokens of a prompt."""
    entries = list(source.part.entries)
    for number, entry in enumerate(entries):
        if asked_of(entry)[0] == "summary":
            once = len(source.inputs.texts.target(f"{entry.target} ")) - 1
            entries[number] = entry.model_copy(update={"target": " ".join([entry.target] * (given.prompt // once))})
    return SortableSource(replace(source.part, entries=tuple(entries)), source.inputs)


def epoch(given: argparse.Namespace) -> dict[str, float]:
    """The whole steps of an epoch, after one for warming up; ``padding``: its share of the tokens."""
    config, found, facts = opened(given)
    source = reports(found, given)
    task = task_of(config, facts)
    order = order_of(source, 0, given.rows, len(source) if given.saved else 0)
    optimizer = torch.optim.AdamW([one for one in task.parameters() if one.requires_grad], lr=0.0)
    losses, seconds, before, masks = [], [], 0, []
    for step in range(-1, len(source) // given.rows):
        if step == 0:
            before = measured_from_here()
        places = range(max(0, step) * given.rows, (max(0, step) + 1) * given.rows)
        batch = on_device(source.collate([source.example(*row) for row in rows_at(order, places)]))
        masks.append(batch["attention_mask"].flatten().cpu())
        loss, taken = trained(task.compute_loss, batch, optimizer)
        losses.append(loss * float(batch["target_mask"].sum()))
        seconds.append(taken)
    padding = 1 - float(torch.cat(masks[1:]).float().mean())
    return {
        **{"seconds": statistics.mean(seconds[1:]), "gigabytes": (read_peak(DEVICE) - before) / GIGABYTE},
        **{"epoch": sum(losses[1:]), "padding": padding, "steps": len(losses) - 1},
    }


def batch_of(source: TrainSource, step: int, given: argparse.Namespace) -> Batch:
    """The rows of a step, with long prompts."""
    examples = []
    for place in range(step * given.rows, (step + 1) * given.rows):
        found = source.example(place % len(source), derive(0, "benchmark", place))
        prompt = list(found["prompt_ids"])
        times = -(-given.prompt // len(prompt))
        examples.append({**found, "prompt_ids": (prompt * times)[: max(given.prompt, len(prompt))]})
    return on_device(source.collate(examples))


def on_device(batch: Batch) -> Batch:
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def task_of(config: settings.RunConfig, facts: Mapping[str, Any]) -> Any:
    """The same weights each time."""
    torch.manual_seed(0)
    return FAMILY.task(config, facts).to(DEVICE).train()


def trained(loss_of: Callable[[Batch], Tensor], batch: Batch, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """The loss of a step, and its seconds; its graph goes with it."""
    begun = clock()
    loss = loss_of(batch)
    torch.autograd.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach()), clock() - begun


def loss_of_all(model: Any, batch: Batch) -> Tensor:
    """The loss by logits of all positions, as language models usually compute it."""
    labels = batch["input_ids"].masked_fill(~batch["target_mask"], -100)
    logits = full_precision(model.logits(batch)[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())


def steps(given: argparse.Namespace) -> dict[str, float]:
    """Some training steps."""
    config, source, facts = opened(given)
    task = task_of(config, facts)
    loss_of: Callable[[Batch], Tensor] = task.compute_loss
    if given.arm == "head" and not given.saved:
        loss_of = functools.partial(loss_of_all, task.model)
    if given.arm == "graph" and not given.saved:
        task.model.llm.enable_input_require_grads()
    optimizer = torch.optim.AdamW([one for one in task.parameters() if one.requires_grad], lr=1e-3)
    losses, seconds, before = [], [], 0
    for step in range(given.steps + 1):
        batch = batch_of(source, step, given)
        if step == 1:
            before = measured_from_here()
        loss, taken = trained(loss_of, batch, optimizer)
        losses.append(loss)
        seconds.append(taken)
    tokens = source.example(0, 0)["climate_tokens"]
    mean = float((tokens.double().mean(dim=0) * torch.arange(1, tokens.shape[1] + 1).double().cos()).sum())
    return {
        **{"seconds": statistics.median(seconds[1:]), "gigabytes": (read_peak(DEVICE) - before) / GIGABYTE},
        **{"first": losses[0], "last": losses[-1], "mean": mean, "tokens": len(tokens)},
        **{"text": batch["input_ids"].shape[1], "targets": float(batch["target_mask"].sum()) / given.rows},
    }


def reads(given: argparse.Namespace) -> dict[str, float]:
    """Some passes over all samples, not collated: one at a time, as a worker holds them."""
    _, source, _ = opened(given)
    if not given.saved:
        source = replace_load(source)
    total = 0.0
    for number in range(len(source)):  # warms up, and is what is compared
        example = source.example(number, 0)
        total += sum(float(example[name].double().sum()) for name in ("field", "climate_tokens") if name in example)
    del example
    before = measured_from_here()
    seconds = []
    for _ in range(given.steps):
        begun = clock()
        for number in range(len(source)):
            source.example(number, 0)
        seconds.append((clock() - begun) / len(source))
    return {
        **{"seconds": statistics.median(seconds), "gigabytes": (read_peak(DEVICE) - before) / GIGABYTE},
        **{"sum": total, "samples": len(source)},
    }


def replace_load(source: TrainSource) -> TrainSource:
    """The same split, whose fields are read whole."""

    def whole(path: Path) -> Tensor:
        found: Tensor = tensor_files.read(path)
        tensor_files.require_plain(path, {"field": found})
        return found

    return TrainSource(replace(source.part, load=whole), source.inputs)


def measured_from_here() -> int:
    """Bytes in use now; peaks count from here."""
    if not reset_peak(DEVICE):
        raise SystemExit("peak memory cannot be measured on this system")
    return read_peak(DEVICE)


def require_same(name: str, results: Sequence[Sequence[Result]]) -> None:
    """End with a line that says how far the arms of a lever lie apart, if that is too far."""
    lever = LEVERS[name]
    for key in lever.same:
        values = [result[key] for arm in results for result in arm]
        other = next((one for one in values if not abs(one - values[0]) <= lever.off * abs(values[0])), None)
        if other is not None:
            raise SystemExit(f"{name}: {key} is {values[0]!r} and {other!r}; the arms do not compute the same")


def asked() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="random:tiny", help="folder of a language model")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=192, help="tokens of a prompt")
    parser.add_argument("--samples", type=int, default=16, help="fields, of 160 channels on 64 x 64 points")
    parser.add_argument("--steps", type=int, default=2, help="measured, after one more")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--levers", nargs="+", choices=LEVERS, default=list(LEVERS))
    parser.add_argument("--arm", choices=LEVERS, help=argparse.SUPPRESS)
    parser.add_argument("--saved", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = asked()
    if given.arm:
        measure = {"files": reads, "kept": reads, "sort": epoch}.get(given.arm, steps)
        print(json.dumps(measure(given)))
        return
    common = words_of(given, "llm", "rows", "prompt", "samples", "steps")
    arms = [
        [*common, "--arm", name, *(["--saved"] if saved else [])] for name in given.levers for saved in (False, True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        results = side_by_side(__file__, arms, given.repeats, {**RESIDENT, "SENSORIUM_CACHE": folder})
    rows = []
    for number, name in enumerate(given.levers):
        pair = results[2 * number : 2 * number + 2]
        require_same(name, pair)
        rows.append(row(name, *pair))
    print(machine())
    print(f"{Path(given.llm).name}, float32; {given.steps} steps of {given.rows} rows, {given.repeats} repeats")
    if lengths := next((arm[0] for arm in results if "text" in arm[0]), None):
        print(
            f"{lengths['text']:.0f} tokens of text a row with padding, {lengths['targets']:.0f} of them to be predicted"
        )
    if "sort" in given.levers:
        unsorted, ordered = (results[2 * given.levers.index("sort") + arm][0] for arm in (0, 1))
        print(
            f"sort: {ordered['steps']} steps, {unsorted['padding']:.1%} of their tokens padding without, "
            f"{ordered['padding']:.1%} with"
        )
    print(table(("lever", "without", "with", "s", "s", "ratio", "MiB", "MiB", "ratio", "apart"), rows))


def row(name: str, without: Sequence[Result], with_it: Sequence[Result]) -> tuple[str, ...]:
    """A line of the table; ``apart``: how far the values that must be the same lie apart at most, as a share."""
    cells = []
    for key, factor in (("seconds", 1.0), ("gigabytes", 1024.0)):
        slow, fast = (median(arm, key) * factor for arm in (without, with_it))
        cells += [f"{slow:.4g}", f"{fast:.4g}", f"{slow / fast:.2f}"]
    apart = max(abs(median(without, key) / median(with_it, key) - 1) for key in LEVERS[name].same)
    return (name, LEVERS[name].without, LEVERS[name].with_it, *cells, f"{apart:.0e}")


if __name__ == "__main__":
    main()
