"""Judge pictures that `inference.py` or `sensorium generate` drew.

    python scripts/evaluate.py --config configs/flickr_train.yaml --eval_dir datasets/FLICKR/eval_outputs
    python scripts/evaluate.py --config configs/flickr_train.yaml --output results.json --device cuda

The samples are those of dataset.test_json. What needs weights that are not there is null, with the reason in
`skipped_metrics`; metrics.weights_dir=FOLDER names a folder of them. Any other key of the file may follow as
SECTION.KEY=VALUE, too. Paths are relative to the current folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensorium import errors, guide


def parser() -> guide.Parser:
    flags = guide.Parser(__doc__ or "")
    flags.flag("--config", Path, None, "file of values, such as configs/flickr_train.yaml")
    flags.flag("--eval_dir", Path, "DATA_DIR/eval_outputs", "folder of the pictures")
    flags.flag("--output", Path, "EVAL_DIR/evaluation.json", "file of the results")
    flags.flag("--device", str, "auto", "cpu, cuda, cuda:1 or auto")
    flags.add_argument("--allow_missing", action="store_true", help="judge the samples whose pictures are all there")
    flags.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="any key of the file")
    return flags


def main() -> None:
    given = parser().given()
    from guide_keys import in_words_of_the_guide

    with in_words_of_the_guide():
        evaluate(given)


def evaluate(given: Mapping[str, Any]) -> None:
    """``given``: the flags. Raises ConfigError and DataError."""
    from guide_keys import PRESET, GuideConfig

    from sensorium import config as configuration
    from sensorium import families, use
    from sensorium.data.tastes import read_styles, read_tastes
    from sensorium.engine import settings
    from sensorium.engine.tables import print_evaluation
    from sensorium.families.pmg.comparing import Bench, JudgeConfig, judge_folder
    from sensorium.families.pmg.sources import places_of
    from sensorium.files import make_folder, write_json

    if "config" not in given:
        raise errors.ConfigError("--config FILE is missing; configs/flickr_train.yaml is one")
    keys = GuideConfig.read(given["config"], configuration.parse_overrides(given.get("overrides", [])))
    path = keys.samples("test")
    if path is None:
        raise errors.ConfigError("dataset.test_json is missing: the samples whose pictures are judged")
    data: Any = settings.resolve(families.load("pmg"), PRESET, keys.settings(world=1), origin="command line").data
    styles = read_styles(Path(data.user_preferences).expanduser()) if data.user_preferences else None
    tastes = read_tastes(Path(path).expanduser(), places_of(data), styles)
    folder = given.get("eval_dir", keys.data_dir / "eval_outputs").expanduser()
    judge = JudgeConfig(
        weights_dir=keys.value("metrics.weights_dir"), allow_missing=bool(given.get("allow_missing", False))
    )
    bench = Bench(data.name, data.image_size, data.resize, keys.value("model.clip"))
    content, result = judge_folder(bench, tastes, folder, judge, given.get("device", "auto"), use.host(print))
    output = given.get("output", folder / "evaluation.json").expanduser()
    make_folder(output.parent)
    write_json(output, content)
    print_evaluation(result)
    print(f"Results: {output}")


if __name__ == "__main__":
    errors.shown(main)
