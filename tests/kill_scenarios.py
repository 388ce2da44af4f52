"""What is killed at every call that changes a file, and what has to hold afterwards.

A program: it imports everything once and lives each life in a fork of itself, which costs milliseconds instead of
seconds. It reads lines ``scenario folder stride`` and answers each with the number of kills, or with what went wrong.
``sabotage`` as a fourth word replaces the renames, which the negative twin needs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from disks import Deadly, on
from helpers import TOY, toy_config
from http_server import publish, serve
from PIL import Image
from run_folder import make_run
from test_features import TEXTS, Counting, contents_of
from test_resume import assert_equal_runs

from sensorium import exported, families, use
from sensorium.data import acquire, manage, transfer
from sensorium.data.catalog import Remote, Source
from sensorium.data.features import FillOptions, cached
from sensorium.data.items import DataSet, Item
from sensorium.data.readers import native
from sensorium.engine import checkpoint, loop, rundir, settings
from sensorium.engine.listener import Saved
from sensorium.engine.portable import read_pt, write_pt
from sensorium.engine.report import write_report

TOY_RUN = {"train": {"steps": 3}, "checkpoint": {"every_steps": 1, "keep": 9}}


@dataclass(frozen=True)
class Scenario:
    """``prepare`` makes a folder, ``act`` is killed in a copy of it, ``judge`` looks at what is left and goes on."""

    prepare: Callable[[Path], object]
    act: Callable[[Path], object]
    judge: Callable[[Path], object]


def none_left(folder: Path) -> None:
    """No temporary file or folder of a killed process."""
    left = [p for p in folder.rglob(".*") if p.name != ".lock" and ("tmp" in p.name or p.name.endswith(".old"))]
    assert not left, left


# ---------------------------------------------------------------- checkpoints


def content(step: int) -> checkpoint.Content:
    return checkpoint.Content({"w": torch.full((4,), float(step))}, {"w/exp": torch.ones(4)}, {"step": step})


def newest(run: Path, allowed: tuple[int, ...]) -> int:
    """The step of the newest checkpoint, which must load, as must all that look complete."""
    folders, problems = checkpoint.complete(run)
    assert not problems, problems
    for folder in folders:
        found = checkpoint.load(folder, "toy")
        step = int(found.state["step"])
        assert found.weights["w"].tolist() == [float(step)] * 4
    assert step in allowed, step
    return step


def save(run: Path, step: int) -> None:
    checkpoint.save(run, "toy", step, content(step))


def saved_twice(run: Path) -> None:
    for step in (1, 2):
        save(run, step)


def after_a_save(run: Path, allowed: tuple[int, ...]) -> None:
    newest(run, allowed)
    save(run, 4)
    none_left(run)
    assert newest(run, (4,)) == 4


def saved_five_times(run: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(run, step)


def after_a_prune(run: Path) -> None:
    assert newest(run, (5,)) == 5
    assert checkpoint.load(checkpoint.folder_of(run, 1), "toy").state["step"] == 1  # the best one
    checkpoint.clear_leftovers(run)
    checkpoint.prune(run, 2, [1], 5)
    assert [folder.name[-1] for folder in checkpoint.complete(run)[0]] == ["1", "4", "5"]
    none_left(run)


# ---------------------------------------------------------------- runs


def begin(run: Path) -> None:
    """As a person does after a kill: resume what has begun, start again what has not."""
    loop.train(TOY, toy_config(TOY_RUN), run / "run", resume=(run / "run/config.yaml").exists(), quiet=True)


def after_a_run(folder: Path) -> None:
    begin(folder)
    assert_equal_runs(folder / "whole", folder / "run")
    report = (folder / "run/report.html").read_text()
    assert report.rstrip().endswith("</html>")
    none_left(folder / "run")


def trained(folder: Path) -> None:
    loop.train(TOY, toy_config(TOY_RUN), folder / "whole", quiet=True)


def saved_of(folder: Path, step: int) -> Saved:
    return Saved(folder / "whole", checkpoint.folder_of(folder / "whole", step), step, float(step), True, 1.0)


def with_best(folder: Path) -> None:
    trained(folder)
    write_pt(saved_of(folder, 2), folder / "best.pt")


def after_best(folder: Path) -> None:
    found = read_pt(folder / "best.pt")
    wanted = checkpoint.load(saved_of(folder, found.head.step).checkpoint, "toy").weights
    assert found.head.step in (2, 3)
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in wanted.items())
    write_pt(saved_of(folder, 3), folder / "best.pt")
    assert read_pt(folder / "best.pt").head.step == 3
    none_left(folder)


def two_runs(folder: Path) -> None:
    trained(folder)
    shutil.copytree(folder / "whole", folder / "run")
    write_pt(saved_of(folder, 2), folder / "best.pt")


def branch(folder: Path) -> None:
    origin = folder / "whole"
    points = [checkpoint.folder_of(origin, step) for step in (1, 2)]
    rundir.branch(origin, points, folder / "run", (folder / "best.pt",))


def after_a_branch(folder: Path) -> None:
    assert newest_step(folder / "whole") == 3
    kept = [run for run in (folder / "run", folder / "run.1") if run.exists() and newest_step(run) == 3]
    assert kept, "what stood there is lost"
    assert (folder / "best.pt").exists()
    if kept == [folder / "run"] or not (folder / "run").exists():
        branch(folder)
    assert newest_step(folder / "run") == 2
    assert newest_step(folder / "run.1") == 3
    loop.train(TOY, toy_config(TOY_RUN), folder / "run", resume=True, quiet=True)
    assert_equal_runs(folder / "whole", folder / "run")
    none_left(folder)


def newest_step(run: Path) -> int:
    folders, problems = checkpoint.complete(run)
    assert not problems
    return int(checkpoint.load(folders[-1], "toy").state["step"])


def report_made(folder: Path) -> None:
    write_report(make_run(folder / "run"))
    (folder / "run/train.log").write_text("")


def report_again(folder: Path) -> None:
    with (folder / "run/metrics.jsonl").open("a") as file:
        file.write('{"kind": "event", "step": 400, "level": "info", "text": "a line for the second report"}\n')
    write_report(folder / "run")


def after_a_report(folder: Path) -> None:
    run = folder / "run"
    assert (run / "report.html").read_text().rstrip().endswith("</html>")
    assert isinstance(json.loads((run / "report.json").read_text()), dict)
    assert (run / "report.md").read_text().startswith("#")
    write_report(run)
    none_left(run)


# ---------------------------------------------------------------- use: exports and indices


def thinking_run(folder: Path) -> None:
    family = families.load("thinking")
    config = settings.resolve(family, "tiny", {"train": {"steps": 2}, "data": {"cache": str(folder / "cache")}})
    loop.train(family, config, folder / "run", quiet=True)


def export(folder: Path) -> None:
    use.export(folder / "run", "hf", out=folder / "out")


def after_an_export(folder: Path) -> None:
    if (folder / "out").exists():
        shutil.move(folder / "out", folder / "first")
        exported.read(families.load("thinking"), folder / "first")
    export(folder)
    exported.read(families.load("thinking"), folder / "out")
    none_left(folder)


def index(folder: Path) -> None:
    use.load(folder / "run").build_index()


def after_an_index(folder: Path) -> None:
    hits = use.load(folder / "run").search({"text": "a red circle"}, k=3)
    assert len(hits) == 3
    index(folder)
    none_left(folder / "run")


# ---------------------------------------------------------------- data


def fill(folder: Path) -> None:
    cached(Counting(), TEXTS, folder, FillOptions(shard_entries=3))


def after_a_fill(folder: Path) -> None:
    store = cached(Counting(), TEXTS, folder, FillOptions(shard_entries=3))
    alone = cached(Counting(), TEXTS, folder / "other", FillOptions(shard_entries=3))
    assert contents_of(store, TEXTS) == contents_of(alone, TEXTS)
    none_left(folder)


TREE = {"pictures/1.jpg": bytes(range(256)) * 20, "pictures/2.jpg": b"two", "list.txt": b"a list"}


def packed(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "pack.zip", "w") as pack:
        for name, data in TREE.items():
            pack.writestr(name, data)


def download(folder: Path) -> None:
    source = Source("toy", "a toy", "CC0", (PUBLISHED[0],))
    problems = acquire.acquire([source], folder / "data", acquire.Choices(), transfer.Watch(str, _silent))
    assert not problems, problems


def _silent(what: str, done: int, total: int | None) -> None:
    del what, done, total


def after_a_download(folder: Path) -> None:
    root = folder / "data"
    for name, data in TREE.items():
        assert not (root / name).exists() or (root / name).read_bytes() == data
    download(folder)
    seen = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    assert {str(path.relative_to(root)): path.read_bytes() for path in seen} == TREE
    assert [p.name for p in root.glob(".*")] == [acquire.MANIFEST]


def drawn(folder: Path) -> None:
    for number in range(3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")


def import_them(folder: Path) -> None:
    items = tuple(
        Item(id=str(n), group=str(n), split=split, text=f"picture {n}", image=folder / f"{n}.png")
        for n, split in enumerate(("train", "val", "test"))
    )
    manage.import_dataset(DataSet("toy", folder, "CC0", items, ()), folder / "new", copy=True)


def after_an_import(folder: Path) -> None:
    if (folder / "new").exists():
        shutil.move(folder / "new", folder / "first")
        assert not manage.verify_dataset(native.read(folder / "first", native.Options())).problems
    import_them(folder)
    assert not manage.verify_dataset(native.read(folder / "new", native.Options())).problems
    none_left(folder)


SCENARIOS = {
    "save": Scenario(saved_twice, lambda r: save(r, 3), lambda r: after_a_save(r, (2, 3))),
    "save again": Scenario(saved_twice, lambda r: save(r, 2), lambda r: after_a_save(r, (1, 2))),
    "prune": Scenario(saved_five_times, lambda run: checkpoint.prune(run, 2, [1], 5), after_a_prune),
    "run": Scenario(trained, begin, after_a_run),
    "guide's file": Scenario(with_best, lambda f: write_pt(saved_of(f, 3), f / "best.pt"), after_best),
    "branch": Scenario(two_runs, branch, after_a_branch),
    "report": Scenario(report_made, report_again, after_a_report),
    "export": Scenario(thinking_run, export, after_an_export),
    "index": Scenario(thinking_run, index, after_an_index),
    "cache": Scenario(lambda folder: None, fill, after_a_fill),
    "download": Scenario(packed, download, after_a_download),
    "import": Scenario(drawn, import_them, after_an_import),
}  # fmt: skip
PUBLISHED: list[Remote] = []  # set once the server is there


# ---------------------------------------------------------------- lives


def live(deed: Callable[[], object]) -> int:
    """Do it in a fork; the exit code, negative for a signal. What it raises stands on standard error."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.dup2(2, 1)
            deed()
            code = 0
        except:  # noqa: E722  # whatever it is, the parent must not meet it
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_every_call(name: str, folder: Path, stride: int, moments: tuple[str, ...]) -> int:
    """The number of kills. Raises AssertionError naming the call after which something did not hold."""
    scenario = SCENARIOS[name]
    base, work, count = folder / "base", folder / "work", folder / "count"
    base.mkdir(parents=True)
    assert live(lambda: scenario.prepare(base)) == 0

    def counted() -> None:
        deadly = Deadly()
        with on(deadly):
            scenario.act(work)
        count.write_text(str(deadly.calls))

    def once(deed: Callable[[], object]) -> int:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(base, work)
        return live(deed)

    assert once(counted) == 0
    kills = 0
    for when in moments:
        for fatal in range(1 + kills % stride, int(count.read_text()) + 1, stride):

            def doomed(fatal: int = fatal, when: str = when) -> None:
                with on(Deadly(fatal, when)):
                    scenario.act(work)

            code = once(doomed)
            if code == 0:  # a download comes in more pieces or fewer: this time it had no such call
                continue
            assert code == -signal.SIGKILL, f"{name}: call {fatal}: ended with {code}"
            kills += 1
            assert live(lambda: scenario.judge(work)) == 0, f"{name}: killed {when} call {fatal}"
    return kills


def sabotage() -> None:
    """As others save: the old state is deleted, and the new one written in its place."""
    original = checkpoint.rename

    def careless(source: Path, target: Path) -> None:
        target.mkdir()
        for path in source.iterdir():
            original(path, target / path.name)
        source.rmdir()

    checkpoint.rename = careless  # type: ignore[assignment]


def main() -> None:
    torch.set_num_threads(1)
    np.random.seed(0)
    ready, server = os.pipe()
    if not (pid := os.fork()):
        with serve() as state:
            packed(Path(sys.argv[1]))
            remote = publish(state, Remote("pack.zip", "", "zip"), (Path(sys.argv[1]) / "pack.zip").read_bytes())
            os.write(server, json.dumps([remote.url, remote.md5, remote.size]).encode())
            signal.pause()
    url, md5, size = json.loads(os.read(ready, 4096))
    PUBLISHED.append(replace(Remote("pack.zip", url, "zip"), md5=md5, size=size))
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        try:
            if order["sabotage"]:
                sabotage()
            kills = kill_at_every_call(order["name"], Path(order["folder"]), order["stride"], tuple(order["moments"]))
            answer: dict[str, Any] = {"kills": kills}
        except AssertionError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
    os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
