"""Make data for training, or check it.

    python prepare_data.py --output_dir data/training --num_samples 1000
    python prepare_data.py --output_dir data/training --validate_only
    python prepare_data.py --output_dir data/era5 --source 'era5/*.nc' --variables era5-wb2 --text texts.csv

Without --source it makes demonstration data: made-up weather over real places, and texts that tell what the finished
fields show. With --source it imports NetCDF (.nc), Zarr, GRIB, .npz or .pt files; `sensorium data import climate` is
the same. Exit code 0: made, or valid; 1: problems were found (validation_report.json lists them); 2: it could not run.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensorium import errors, guide

guide.off_the_path(__file__)

_DEMO = ("num_samples", "shape", "questions", "field_effect")
_IMPORT = (
    *("variables", "bbox", "grid", "times", "dt_hours", "crop", "stride", "climatology", "targets", "text"),
    *("text_hours", "split", "block_days", "gap_hours", "max_samples", "filter_by_keys"),
)
_BOTH = ("val_fraction", "seed")
_CHECK = ("time_policy", "tokenizer", "max_length")


def parser() -> guide.Parser:
    flags = guide.Parser(__doc__ or "")
    flags.flag("--output_dir", Path, None, "folder of train/ and val/")
    flags.add_argument("--validate_only", action="store_true", help="make nothing; check what is there")
    flags.add_argument("--overwrite", action="store_true", help="replace data that are there, when the new are whole")
    flags.flag("--val_fraction", float, 0.1, "share for validation")
    flags.flag("--seed", int, 0, "other numbers give other data, or another split")
    flags.flag("--num_samples", int, 1000, "demonstration data: samples in all")
    flags.flag("--shape", str, "2,160,64,64", "likewise: times, channels, rows, columns")
    flags.flag("--questions", int, 1, "likewise: entries of each field, each of another question")
    flags.flag("--field_effect", float, 1.0, "likewise: share of texts that tell of their own field; 0: none does")
    flags.flag("--source", str, None, "files to import, such as 'data/*.nc', several with commas")
    flags.flag("--variables", str, "merra2-160", "import: merra2-160, era5-wb2, hrrr or a table of variables (.yaml)")
    flags.flag("--bbox", str, None, "import: west,south,east,north in degrees")
    flags.flag("--grid", str, None, "import: rows x columns onto which maps are brought, such as 64x64")
    flags.flag("--times", str, None, "import: FROM/TO, such as 2020-01-01/2020-12-31")
    flags.flag("--dt_hours", str, 6, "import: hours between the two times of a sample; null: neighbours")
    flags.flag("--crop", str, None, "import: rows x columns of a sample, cut out of the map")
    flags.flag("--stride", str, None, "import: rows x columns between crops (half a crop by itself)")
    flags.flag("--climatology", str, "none", "import: none, mean or month: what is usual, from the times of training")
    flags.add_argument("--anomaly", action="store_true", help="import: write departures from the usual")
    flags.flag("--targets", str, "none", "import: templated computes the texts from the field")
    flags.flag("--text", str, None, "import: table of texts (.csv, .json, .jsonl), joined by time and place")
    flags.flag("--text_hours", float, 3, "import: how far the field of a text may be away in time")
    flags.flag("--split", str, "time", "import: time or region, what validation has for itself")
    flags.flag("--block_days", float, 10, "import: days that stay together")
    flags.flag("--gap_hours", float, 48, "import: between samples of training and validation")
    flags.flag("--max_samples", int, None, "import: entries at most")
    flags.flag("--filter_by_keys", str, None, "import: which messages of GRIB files, such as '{typeOfLevel: surface}'")
    flags.add_argument("--strict", action="store_true", help="check: positions must be given")
    flags.flag("--time_policy", str, "exact", "check: times of a field: exact 2, repeat 1, pairs 3 or more")
    flags.flag("--tokenizer", str, None, "check: language model whose tokens are counted, a name or a folder")
    flags.flag("--max_length", int, 512, "check: tokens at most")
    return flags


def main() -> None:
    given = parser().given()
    if "output_dir" not in given:
        raise errors.ConfigError("--output_dir is missing; --help lists the flags")
    _require_fitting(given)
    if "validate_only" in given:
        sys.exit(_check(given))
    if "source" in given:
        _import(given)
    else:
        _demo(given)


def _require_fitting(given: Mapping[str, Any]) -> None:
    """Raise ConfigError for a flag that would have no effect."""
    allowed: tuple[str, ...]
    if "validate_only" in given:
        kind, allowed = "--validate_only", (*_CHECK, "strict")
    elif "source" in given:
        kind, allowed = "--source", (*_IMPORT, *_BOTH, "anomaly", "overwrite")
    else:
        kind, allowed = "demonstration data", (*_DEMO, *_BOTH, "overwrite")
    lost = [name for name in given if name not in (*allowed, "output_dir", "validate_only", "source")]
    if lost or {"validate_only", "source"} <= given.keys():
        raise errors.ConfigError(f"--{(lost or ['source'])[0]} has no effect with {kind}; leave it out")


def _options(given: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Flags as OPTION=VALUE has them: texts are read as YAML."""
    from sensorium.config import parse_overrides

    texts = [f"{name}={given[name]}" for name in names if name in given]
    return parse_overrides(texts)


def _demo(given: Mapping[str, Any]) -> None:
    from sensorium.config import build
    from sensorium.data.fields import demo
    from sensorium.engine.tracking import progress_bar

    content = _options(given, (*_DEMO, *_BOTH))
    if "shape" in given:
        try:
            content["shape"] = tuple(int(one) for one in given["shape"].split(","))
        except ValueError:
            raise errors.ConfigError(f"--shape {given['shape']}: expected four numbers, such as 2,160,64,64") from None
    options = build(demo.Options, content, "options of the demonstration data")
    target: Path = given["output_dir"]
    place = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    print(f"{options.bytes / 1e9:.2f} GB for {options.num_samples:,} samples; {free / 1e9:.1f} GB are free", flush=True)
    with progress_bar("prepare", options.num_samples) as advance:
        counts = demo.write(target, options, overwrite="overwrite" in given, progress=advance)
    print(f"{target}: " + ", ".join(f"{split} {count:,}" for split, count in counts.items()) + " samples")


def _import(given: Mapping[str, Any]) -> None:
    from sensorium.config import build
    from sensorium.data.fields import composing, importing
    from sensorium.engine.tracking import progress_bar

    content = {"source": given["source"], "anomaly": "anomaly" in given, **_options(given, (*_IMPORT, *_BOTH))}
    options = build(importing.Options, content, "options of the import")
    target: Path = given["output_dir"]
    with progress_bar("import", 1) as advance:
        done = composing.write(target, options, overwrite="overwrite" in given, progress=advance)
    print(*(errors.printable(f"note: {note}") for note in done.notes), sep="\n")
    print(f"{target}: " + ", ".join(f"{split} {count:,}" for split, count in done.entries.items()) + " entries")


def _check(given: Mapping[str, Any]) -> int:
    from sensorium.config import build
    from sensorium.data.fields import formats, validation
    from sensorium.engine.tracking import progress_bar

    content = {"strict": "strict" in given, **_options(given, ("time_policy",))}
    options = build(formats.VerifyOptions, content, "options of the check")
    count = _counter(given["tokenizer"], given.get("max_length", 512)) if "tokenizer" in given else None
    rules = validation.Rules(options.time_policy, options.strict, count, given.get("max_length", 512))
    with progress_bar("validate", 1) as advance:
        report = validation.validate(given["output_dir"], rules, advance)
    path = validation.write_report(report)
    for line in report.lines():
        print(errors.printable(line), file=sys.stderr if line.startswith(("problem", "  ")) else sys.stdout)
    print(f"{path}: " + ("valid" if not report.problems else f"{len(report.problems):,} problems"))
    return 1 if report.problems else 0


def _counter(name: str, length: int) -> Any:
    """Counts the tokens of a text with its target. Raises ConfigError when there is no such tokenizer."""
    from transformers import AutoTokenizer

    from sensorium.families.climate_text.prompts import Texts

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise errors.ConfigError(f"--tokenizer {name}: cannot be loaded ({reason})") from error
    return Texts(tokenizer, "plain", length).count


if __name__ == "__main__":
    errors.shown(main)
