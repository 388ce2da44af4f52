"""Open a trained run and use it, or carry its model elsewhere.

>>> model = sensorium.load("runs/demo-emoji")                      # doctest: +SKIP
>>> vector = model.encode({"text": "a barking dog"})               # doctest: +SKIP
>>> hits = model.search({"text": "a barking dog"}, "image", k=5)   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sensorium import config as configuration
from sensorium import exported, families, reading
from sensorium.engine import rundir, session
from sensorium.engine.contract import Answerer, Comparer, Family, FolderSearcher, Host, Illustrator, Loaded, Searcher
from sensorium.engine.tracking import progress_bar
from sensorium.errors import CheckpointError, ConfigError, DataError
from sensorium.files import new_folder, remove


def load(run: str | Path, checkpoint: str = "best", data: Mapping[str, Any] | None = None) -> Any:
    """The family's ``use`` object over the weights of a run or of an export: for retrieval families a searcher.

    ``checkpoint``: ``best``, ``latest`` or the name of a checkpoint folder; ``run`` may also be that folder itself.
    ``data``: settings of the data section to change, where something lies elsewhere by now
    (``{"image_encoder": "models/clip"}``). Raises CheckpointError when the folder is no run and no export or is
    damaged, ConfigError when its family has nothing to use.
    """
    folder, checkpoint = _of_run(Path(run), checkpoint)
    family = family_of(folder)
    if family.use is None:
        raise ConfigError(f"{folder}: family {family.name!r} has no use but its report")
    loaded = _open(family, folder, checkpoint)
    if data:
        settings = configuration.merge(configuration.dump(loaded.config), {"data": data})
        loaded = replace(loaded, config=configuration.build(type(loaded.config), settings, "load(data=...)"))
    return family.use(loaded)


def _of_run(folder: Path, checkpoint: str) -> tuple[Path, str]:
    """A folder ``RUN/checkpoints/NAME`` means this checkpoint of that run."""
    run = folder.parent.parent
    if folder.parent.name != "checkpoints" or not (folder.is_dir() and (run / "config.yaml").is_file()):
        return folder, checkpoint
    if checkpoint not in ("best", folder.name):
        raise ConfigError(f"{folder}: is a checkpoint already; leave the checkpoint {checkpoint!r} out")
    return run, folder.name


def searcher_within(run: Path, folder: Path) -> Searcher:
    """The searcher of a run over the files of a folder. Raises ConfigError where its family finds only its own data."""
    found = load(run)
    if not isinstance(found, FolderSearcher):
        raise ConfigError(f"{run}: family {family_of(run).name!r} searches in the data of its run alone")
    return found.within(folder)


def answerer(run: Path, checkpoint: str = "best") -> Answerer:
    """The use of a run that answers questions. Raises ConfigError where its family does not."""
    found = load(run, checkpoint)
    if not isinstance(found, Answerer):
        raise ConfigError(f"{run}: family {family_of(run).name!r} answers no questions")
    return found


def illustrator(run: Path, checkpoint: str = "best") -> Illustrator:
    """The use of a run, or of an export, that draws. Raises ConfigError where its family does not."""
    found = load(run, checkpoint)
    if not isinstance(found, Illustrator):
        raise ConfigError(f"{run}: family {family_of(run).name!r} draws no pictures")
    return found


def comparer(run: Path, checkpoint: str = "best") -> Comparer:
    """The use of a run, or of an export, that compares. Raises ConfigError where its family does not."""
    found = load(run, checkpoint)
    if not isinstance(found, Comparer):
        raise ConfigError(f"{run}: family {family_of(run).name!r} has no pictures to compare; leave --data out")
    return found


def host(say: Callable[[str], None]) -> Host:
    """A host for work outside of runs: alone, with a bar on the console."""
    return Host(say=say, progress=progress_bar)


def read_box(text: str | None) -> tuple[float, float, float, float] | None:
    """West, south, east and north from ``W,S,E,N``. Raises ConfigError."""
    if text is None:
        return None
    try:
        west, south, east, north = (float(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"--bbox {text}: expected west,south,east,north, such as -20,30,50,60") from None
    return west, south, east, north


def read_queries(path: Path) -> list[dict[str, str]]:
    """Queries from a JSON file: texts, or objects from modality to text or path. Raises DataError."""
    try:
        content = reading.parse_json(reading.read_bytes(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, list) or not content:
        raise DataError(f'{path}: expected a list of queries, such as ["a dog", {{"text": "a cat"}}]')
    queries = [{"text": one} if isinstance(one, str) else one for one in content]
    for number, one in enumerate(queries):
        if not isinstance(one, dict) or not one or not all(isinstance(value, str) for value in one.values()):
            raise DataError(f"{path}: entry {number} is no query; expected a text, or an object of texts and paths")
    return queries


def export(run: Path, form: str, checkpoint: str = "best", out: Path | None = None) -> tuple[Path, str]:
    """Write the model of a run (or of an export) in one of the family's formats; the folder, and a line about it.

    ``out`` (default ``RUN/export/FORMAT``) appears by one rename. Raises ConfigError when it is there and not empty or
    the family has no such format, CheckpointError as ``load`` does.
    """
    family = family_of(run)
    if form not in family.exports:
        there = ", ".join(family.exports) or "none"
        raise ConfigError(f"{run}: family {family.name!r} has no export format {form!r}; it has: {there}")
    target = out or run / "export" / form
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target}: exists and is not an empty folder; --out takes another one")
    loaded = _open(family, run, checkpoint)
    new_parent = not target.parent.exists()
    try:
        with new_folder(target) as temporary:
            return target, family.exports[form](loaded, temporary)
    finally:
        if new_parent and target.parent.is_dir() and not any(target.parent.iterdir()):
            remove(target.parent)  # nothing was exported: leave nothing behind


def family_of(folder: Path) -> Family:
    """The family of a run or an export. Raises CheckpointError when the folder is neither or names none."""
    stored = exported.read_config(folder) if exported.is_export(folder) else rundir.stored_config(folder)
    if not isinstance(stored.get("family"), str):
        raise CheckpointError(f"{folder / 'config.yaml'}: names no family")
    return families.load(stored["family"])


def _open(family: Family, folder: Path, checkpoint: str) -> Loaded:
    if not exported.is_export(folder):
        return session.open_run(family, folder, checkpoint)
    if checkpoint != "best":
        raise ConfigError(f"{folder}: an export holds one set of weights; leave the checkpoint {checkpoint!r} out")
    return exported.read(family, folder)
