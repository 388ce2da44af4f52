"""Train the interaction model: image, text and audio towers from scratch, in three stages.

    python run_training.py --model-size base --batch-size 8 --epochs 100
    python run_training.py --resume outputs/checkpoints/checkpoint_epoch_50.pt
    python run_training.py --demo

Values come from config.yaml beside this script, or from --config FILE; a flag that is given wins. Every data set that
lies below --data-root is used, ESC-50 for the evaluation alone. --demo needs no data and no network: 256 embedded
items, size tiny, 3 epochs and learning rate 1e-3 unless given. Paths are relative to the current folder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium import errors, guide

guide.off_the_path(__file__)

if TYPE_CHECKING:
    import torch

    from sensorium.engine.continuation import Start
    from sensorium.engine.contract import Family, Sources
    from sensorium.engine.listener import Saved
    from sensorium.engine.settings import RunConfig
    from sensorium.engine.stages import Span

CONFIG = Path(__file__).resolve().parent / "config.yaml"
KEYS = {
    "data_root": "paths.data_root",
    "output_dir": "paths.output_dir",
    "model_size": "model.size",
    "batch_size": "training.batch_size",
    "epochs": "training.epochs",
    "lr": "training.learning_rate",
}
SETTINGS = {"model_size": "model.size", "epochs": "train.epochs", "lr": "optim.lr"}  # of a run that goes on
DEMO = {"model_size": "tiny", "epochs": 3.0, "lr": 1e-3}
PREFIX = "model."  # of the names of the model's weights in a run
EVERY = 10  # epochs between two checkpoint_epoch_*.pt
SIZES = {"tiny": "15M", "small": "35M", "base": "80M", "large": "200M"}


def parser() -> guide.Parser:
    flags = guide.Parser(__doc__ or "")
    flags.flag("--data-root", str, "./data", "folder of the data sets")
    flags.flag("--output-dir", str, "./outputs", "folder for models, logs and reports")
    flags.flag("--model-size", str, "base", f"{', '.join(SIZES)} ({', '.join(SIZES.values())} parameters)")
    flags.flag("--batch-size", int, 8, "rows that are computed at a time")
    flags.flag("--epochs", float, 100, "epochs of all three stages together, also after --resume")
    flags.flag("--lr", float, "1e-4", "learning rate")
    flags.flag("--resume", Path, "None", "file of outputs/checkpoints to go on from")
    flags.flag("--config", Path, "config.yaml beside this script", "file of values")
    flags.add_argument("--demo", action="store_true", help="embedded data, nothing needed")
    flags.add_argument("--set", action="append", metavar="SECTION.KEY=VALUE", help="any setting of docs/config.md")
    return flags


def main() -> None:
    begun = time.monotonic()
    given = parser().given()
    from sensorium import config as configuration
    from sensorium import families

    family: Family = families.load("interaction")
    overrides = configuration.parse_overrides(given.get("set", []))
    lines = Lines(family, begun)
    start = going_on(family, given, overrides) if "resume" in given else anew(family, given, overrides, lines)
    lines.main = guide.leads(start)
    lines.train(start)


def anew(family: Family, given: dict[str, Any], overrides: Mapping[str, Any], lines: Lines) -> Start:
    """A new run: config.yaml, then the flags; and the data sets that are there."""
    from sensorium import config as configuration
    from sensorium.engine import continuation, settings
    from sensorium.families.interaction import guided

    flags = {**DEMO, **given} if "demo" in given else given
    keys = guided.keys(given.get("config", CONFIG), guide.settings_of(flags, KEYS))
    if "demo" in given:
        data = guided.DEMO
    elif "sets" in overrides.get("data", {}):
        data = {}  # named by hand
    else:
        data = {"data": {"sets": lines.found(Path(keys.paths.data_root))}}
    layer = configuration.merge(keys.settings(), data, overrides)
    return continuation.Start(
        settings.resolve(family, "guide", layer, origin="command line"), run_of(keys.paths.output_dir)
    )


def going_on(family: Family, given: dict[str, Any], overrides: Mapping[str, Any]) -> Start:
    """A run that was begun before, with all that is not given as it was."""
    from sensorium import config as configuration
    from sensorium.engine import continuation, portable
    from sensorium.families.interaction import guided

    path: Path = given["resume"]
    for flag in ("config", "demo"):
        if flag in given:
            raise errors.ConfigError(f"--{flag} has no place beside --resume: a run goes on with its own values")
    stored = portable.read_pt(path).config
    changes = guide.settings_of(given, SETTINGS)
    if "batch_size" in given:
        rows = given["batch_size"] * stored["train"]["micro_batches"]
        changes = configuration.merge(changes, {"train": {"batch_size": rows}})
    if "data_root" in given:
        sets = {name: one for name, one in stored["data"]["sets"].items() if one["root"] is not None}
        roots = {name: {"root": str(Path(given["data_root"]) / name)} for name in sets}
        changes = configuration.merge(changes, {"data": {"sets": roots}})
    run = path.parent.parent / "run" if path.parent.name == "checkpoints" else None
    if "output_dir" in given:
        run = run_of(given["output_dir"])
        changes = configuration.merge(changes, {"track": {"tensorboard_dir": str(guided.curves(run.parent))}})
    return continuation.continue_from(family, path, configuration.merge(changes, overrides), run)


def run_of(output_dir: str) -> Path:
    return Path(output_dir) / "run"


class Lines:
    """What is said and written beside the engine: the console, outputs/logs/train.log, .pt files, reports."""

    def __init__(self, family: Family, begun: float) -> None:
        self.family, self.started, self.main = family, begun, True
        self.waiting: list[str] = []  # said before there was a log
        self.log: Path | None = None
        self.plan: list[Span] = []
        self.parameters: int | None = None
        self.sets: list[dict[str, Any]] | None = None

    def say(self, text: str, *, shown: bool = True) -> None:
        """Print a line and keep it in the log."""
        if shown:
            print(text, flush=True)
        if self.log is None:
            self.waiting.append(text)
            return
        from sensorium.files import open_file, told

        with told(self.log), open_file(self.log, "a") as file:
            file.write(errors.printable(text) + "\n")

    def found(self, data_root: Path) -> dict[str, Any]:
        """Show which data sets there are; as settings. Raises ConfigError when there is none."""
        from sensorium.engine import launch
        from sensorium.engine.tables import print_table
        from sensorium.families.interaction import guided

        places = guided.look(data_root)
        sets = guided.settings_of(places)
        if launch.is_main():
            table = guided.table(places)
            print_table(table)
            for row in table.rows:
                self.say("  ".join(map(str, row)), shown=False)
        if not sets:
            wanted = " ".join(guided.SETS[:3])
            raise errors.ConfigError(
                f"no data set to train on in {data_root}: `python download_datasets.py --datasets {wanted} "
                f"--data-root {data_root}` fetches some, --demo trains without"
            )
        return sets

    def train(self, start: Start) -> None:
        """Train, evaluate, and leave a report however it ends."""
        from sensorium.engine.tables import print_evaluation
        from sensorium.families.interaction import portable

        self.start = start
        content = guide.of_model(self.family, portable.portable_content)
        self.files = guide.EpochFiles(self.family, start.run.parent / "checkpoints", EVERY, PREFIX, content)
        how = "by an error"
        try:
            with guide.out_of_memory(self.ways_out):
                result = guide.train(self.family, start, self, self.files)
            how = "complete"
        except (errors.RunError, errors.Stopped) as error:
            how = str(error).partition("\n")[0]
            raise
        finally:
            if self.main and self.parameters is not None:  # something was begun
                self.report(how)
        if result is not None:
            print_evaluation(result)

    def report(self, how: str) -> None:
        from sensorium import guide_report

        ended = guide_report.Ended(how, time.monotonic() - self.started, self.parameters, self.sets)
        self.say(f"Training report: {guide_report.write(self.start.run, self.start.run.parent / 'reports', ended)}")

    def ways_out(self, reason: str) -> str:
        """The guide's three, with this run's numbers."""
        config = self.start.config
        rows, parts = config.train.batch_size, config.train.micro_batches
        size, now = getattr(config.model, "size", ""), rows // parts
        smaller = [name for name in SIZES if name in list(SIZES)[: list(SIZES).index(size)]] if size in SIZES else []
        model = f"size {size}" if self.parameters is None else f"size {size}, {self.parameters:,} parameters"
        return "\n".join(
            [
                f"out of memory with --batch-size {now}, {parts} parts, {model} ({reason})",
                f"  1. a smaller --batch-size: {max(1, now // 2)} instead of {now}",
                f"  2. a smaller --model-size: {' or '.join(smaller) or 'this is the smallest'}",
                f"  3. gradient_accumulation_steps: {2 * parts} in config.yaml instead of {parts}, with --batch-size "
                f"{max(1, now // 2)}: as many rows as now ({rows}) meet in one loss, half of them at a time",
            ]
        )

    # What the engine tells (listener.Listener).

    def begun(self, config: RunConfig, sources: Sources, device: torch.device, precision: str) -> None:
        import torch as pytorch

        from sensorium.families.interaction import guided
        from sensorium.families.interaction.config import ModelConfig
        from sensorium.families.interaction.data import DataConfig
        from sensorium.families.interaction.model import InteractionModel

        assert isinstance(config.model, ModelConfig)
        assert isinstance(config.data, DataConfig)
        with pytorch.device("meta"):
            self.parameters = sum(p.numel() for p in InteractionModel(config.model).parameters())
        self.sets = guided.used(sources, list(config.data.sets))
        if self.start.point is None:
            self.files.begin_anew(but=config.train.warm_start)
        self.open_log()
        self.plan = guide.plan(self.family, config, self.start.run, sources.train)
        rows, parts = config.train.batch_size, config.train.micro_batches
        self.say(f"Device: {device.type}; precision: {precision}")
        self.say(f"Model: {config.model.size}, {self.parameters:,} parameters")
        self.say(f"Batch: {rows // parts} rows x {parts} parts; {rows} rows meet in one loss")
        stages = ", ".join(f"{span.stage.name} until step {span.end}" for span in self.plan)
        self.say(f"Epochs: {config.train.epochs or 0:g}; stages: {stages}")

    def open_log(self) -> None:
        """outputs/logs/train.log is the run's own by a second name."""
        from sensorium.files import link_or_copy, make_folder, remove

        log = self.start.run.parent / "logs" / "train.log"
        make_folder(log.parent)
        remove(log)
        link_or_copy(self.start.run / "train.log", log)
        self.log = log
        for line in self.waiting:
            self.say(line, shown=False)

    def stepped(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        number = next(place for place, span in enumerate(self.plan, 1) if step <= span.end)
        span = self.plan[number - 1]
        if step == span.first + 1:
            self.say(f"Stage {number} of {len(self.plan)}: {span.stage.name}, steps {step} to {span.end}")
        if step % self.start.config.track.log_every == 0 or step in (span.first + 1, span.end):
            names = [
                name
                for name in ("unimodal/image", "unimodal/audio", "align", "match", "recon", "classify")
                if name in values
            ]
            parts = "  ".join(f"{name} {values[name]:.4f}" for name in ("loss", *names) if name in values)
            rate = max(value for name, value in values.items() if name.startswith("lr/"))
            print(
                f"[{span.stage.name}] epoch {epoch:.2f} step {step}/{self.plan[-1].end}  {parts}  lr {rate:.2e}",
                flush=True,
            )

    def validated(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        self.files.validated = step, metrics
        r_sum, chance = metrics["r_sum"], metrics["chance/r_sum"]
        print(
            f"Validation after epoch {epoch:.2f}: loss {metrics['loss']:.4f}, R-Sum {r_sum:.1f} (chance {chance:.1f})",
            flush=True,
        )

    def saved(self, saved: Saved) -> None:
        self.files.write(saved)
        if saved.better:
            self.say(f"Best of its stage so far: {saved.value:.4f} -> {self.files.best}")


if __name__ == "__main__":
    errors.shown(main)
