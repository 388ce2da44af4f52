"""What the three preprocessing scripts share: flags, captions, and the files that they write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium import errors, guide

if TYPE_CHECKING:
    from sensorium.data.history_build import Choices, Raw

OUTPUT = "processed_dataset"
_COMMON = ("split", "history", "seed", "captions", "bad_samples", "max_bad")


@dataclass(frozen=True)
class Kind:
    """A data set. ``user``: how its files call users; ``own``: its own flags, by option of its reader; ``before``: is
    called before its files are read, for the flags that are not the reader's."""

    reader: str
    user: str
    default: str
    own: tuple[str, ...]
    before: Callable[[Mapping[str, Any], Path, Choices], None] | None = None


def parser(text: str, kind: Kind) -> guide.Parser:
    """The flags of all three."""
    flags = guide.Parser(text)
    flags.flag("--data_dir", Path, kind.default, "folder of the data set as it was published")
    flags.flag("--output_dir", Path, f"DATA_DIR/{OUTPUT}", "where the files are written")
    flags.flag("--split", str, "guide", "guide: the published counts; honest: no held-out target in training")
    flags.flag("--history", int, 3, "pictures before the one that is foretold")
    flags.flag("--seed", int, 42, "of the split")
    flags.flag("--captions", Path, None, "JSON from id to caption")
    flags.flag("--captioner", Path, None, "local image-to-text model of transformers that writes the captions")
    flags.flag("--device", str, "cuda where there is one, else cpu", "where the captioner runs")
    flags.flag("--styles", Path, None, "JSON with the style text of users, for user_preferences.json")
    flags.flag("--bad_samples", str, "raise", "of broken pictures and missing captions: raise or skip")
    flags.flag("--max_bad", int, 100, "with skip: stop above so many")
    return flags


def run(flags: guide.Parser, kind: Kind) -> None:
    """Read, caption, split, write. Raises ConfigError and DataError."""
    from sensorium.config import build
    from sensorium.data import history_build, readers
    from sensorium.data.processed import REPORT, write_processed
    from sensorium.data.tastes import read_styles

    given = flags.given()
    _require_fitting(given)
    module = readers.load(kind.reader)
    content = {name: given[name] for name in (*_COMMON, *kind.own) if name in given}
    content |= {"captions": str(given["captions"])} if "captions" in given else {}
    options = build(module.Options, content, f"flags of {kind.reader}")
    assert isinstance(options, history_build.Choices)
    root = given.get("data_dir", Path(kind.default))
    styles = read_styles(given["styles"]) if "styles" in given else None
    if kind.before is not None:
        kind.before(given, root, options)
    output = given.get("output_dir", root / OUTPUT)
    raw, about = _gathered(module, root, options, given)
    dataset, facts = history_build.compose(raw, options)
    if about:
        _keep(output, raw)
    counts = write_processed(dataset, facts | about, output, kind.user, styles)
    for note in dataset.notes:
        print(errors.printable(note))
    print(
        f"{output}: " + ", ".join(f"{split} {count:,}" for split, count in counts.items()) + f" samples; see {REPORT}"
    )


def _require_fitting(given: Mapping[str, Any]) -> None:
    """Raise ConfigError for flags that do not go together."""
    if {"captions", "captioner"} <= given.keys():
        raise errors.ConfigError("--captions and --captioner: one of them writes the captions; leave the other out")
    if "device" in given and "captioner" not in given:
        raise errors.ConfigError("--device has no effect without --captioner; leave it out")


def _gathered(module: Any, root: Path, options: Choices, given: Mapping[str, Any]) -> tuple[Raw, dict[str, Any]]:
    """What stands in the files, with captions; and what the report says of the captioner."""
    if "captioner" not in given:
        return module.gather(root, options), {}
    from sensorium.data.feature_fill import FillOptions
    from sensorium.data.history_build import used_pictures
    from sensorium.engine.tracking import progress_bar
    from sensorium.families.pmg.captioner import Captioner, captions

    captioner = Captioner(given["captioner"], _device(given.get("device")))
    raw: Raw = module.gather(root, options, captions={}, by=captioner.name)
    pictures = used_pictures(raw)
    with progress_bar("captions", len(pictures)) as advance:
        filling = FillOptions(policy=options.bad_samples, progress=advance, say=print)
        found, broken = captions(pictures, captioner, filling)
    for line in broken:
        print(errors.printable(f"no caption: {line}"))
    about = {"captioner": captioner.folder.absolute().name, "captioner_sha256": captioner.digest}
    return replace(raw, captions=found), about


def _device(asked: str | None) -> str:
    """Raises ConfigError where it is not there."""
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked != "cpu" and not (asked.partition(":")[0] == "cuda" and torch.cuda.is_available()):
        raise errors.ConfigError(f"--device {asked}: not there; cpu is")
    return asked


def _keep(folder: Path, raw: Raw) -> None:
    """The captions that were written, for --captions and `sensorium data import`."""
    from sensorium.files import make_folder, write_json

    make_folder(folder)
    write_json(folder / "captions.json", dict(raw.captions))
