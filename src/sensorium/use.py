"""Open a trained run and use it.

>>> model = sensorium.load("runs/demo-emoji")                      # doctest: +SKIP
>>> vector = model.encode({"text": "a barking dog"})               # doctest: +SKIP
>>> hits = model.search({"text": "a barking dog"}, "image", k=5)   # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sensorium import families
from sensorium.engine import rundir, session
from sensorium.errors import ConfigError


def load(run: str | Path, checkpoint: str = "best") -> Any:
    """The family's ``use`` object over the weights of a run: for retrieval families a searcher.

    ``checkpoint``: ``best``, ``latest`` or the name of a checkpoint folder. Raises CheckpointError when the folder is
    no run or is damaged, ConfigError when its family has nothing to use.
    """
    folder = Path(run)
    family = families.load(str(rundir.stored_config(folder).get("family")))
    if family.use is None:
        raise ConfigError(f"{folder}: family {family.name!r} has no use but its report")
    return family.use(session.open_run(family, folder, checkpoint))
