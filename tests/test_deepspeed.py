"""DeepSpeed: ZeRO 0-3 on two processes is one process, saved and resumed bit for bit, and continued without it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import lines, toy_config
from rank_group import Group, Nursery, open_nursery
from test_guard import expected_scales
from test_resume import EACH_STEP, assert_equal_runs, cut
from zero_families import DIVIDED

from sensorium import config as configuration
from sensorium import families
from sensorium.engine import checkpoint, loop, rundir
from sensorium.engine.evaluate import evaluate_run
from sensorium.engine.order import Order
from sensorium.errors import ConfigError

pytestmark = [
    pytest.mark.deepspeed,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: pip install 'sensorium[deepspeed]'"
    ),
]

FIRST = """
from sensorium.engine import settings, zero_start
from sensorium import families
zero_start.load(cpu=True)
from toy_variants import FAMILIES, scaled
from zero_families import DIVIDED
"""
TRAIN = """
family = {"divided": DIVIDED, **FAMILIES}.get(name) or families.load(name)
run = Path(run)
loop.train(family, settings.resolve(family, "tiny", config), run, resume=(run / "config.yaml").exists(), quiet=True)
"""
QUIET = {"track": {"tensorboard": False}}
STILL: Mapping[str, Any] = {
    **EACH_STEP,
    **QUIET,
    "model": {"dropout": 0.0},
    "train": {"steps": 10, "micro_batches": 2, "grad_clip": 2.0},
    "schedule": {"name": "cosine", "warmup_steps": 2},
}


def zero(stage: int, **more: Any) -> dict[str, Any]:
    # Small buckets: of those that DeepSpeed likes, some gigabytes are laid out for each process.
    sizes = {"reduce_bucket_size": 5000, "allgather_bucket_size": 5000, "stage3_param_persistence_threshold": 10}
    content = {"zero_optimization": sizes}
    return {"deepspeed": {"enabled": True, "zero_stage": stage, "config": content, **more}}


KINDS: Mapping[str, Mapping[str, Any]] = {
    "ddp": {},
    **{f"zero {stage}": zero(stage) for stage in range(4)},
    "zero 2, offload": zero(2, cpu_offload=True),
}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with open_nursery(tmp_path_factory.mktemp("nursery"), FIRST) as nursery:
        yield nursery


def start(
    nursery: Nursery, run: Path, config: Mapping[str, Any], name: str = "divided", *, world: int = 2, first: str = ""
) -> Group:
    """Train, or continue what is there. ``first``: what each rank runs before."""
    given = f"name, config, run = {name!r}, {configuration.merge(config)!r}, {str(run)!r}"
    return nursery.start("\n".join((given, first, TRAIN)), world)


def finish(*groups: Group) -> None:
    for group in groups:
        assert set(group.codes()) == {0}, group.said(0) + group.said(len(group.pids) - 1)
        assert [group.said(rank) for rank in range(len(group.pids))] == [""] * len(group.pids)


def at(run: Path, step: int) -> checkpoint.Content:
    folder = checkpoint.folder_of(run, step)
    return checkpoint.load(folder, checkpoint.check(folder).family)


def assert_close(run: Path, expected: Path, step: int, losses: float = 1e-5, weights: float = 1e-4) -> None:
    """Losses of all steps, weights and optimizer state after ``step``; buffers are those of the first process."""
    ours, theirs = (
        [line["loss"] for line in lines(folder / "metrics.jsonl") if line["kind"] == "train"]
        for folder in (run, expected)
    )
    assert len(ours) == len(theirs) == step
    assert ours == pytest.approx(theirs, rel=losses)
    one, other = at(run, step), at(expected, step)
    assert one.frozen == other.frozen
    assert one.optimizer.keys() == other.optimizer.keys()
    names = {key.rpartition("/")[0] for key in one.optimizer}
    for left, right in ((one.weights, other.weights), (one.optimizer, other.optimizer)):
        assert left.keys() == right.keys()
        for name in (name for name in left if left is one.optimizer or name in names):
            assert left[name].dtype == right[name].dtype
            torch.testing.assert_close(left[name], right[name], rtol=weights, atol=weights)


@pytest.fixture(scope="module")
def alike(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by one process and, in every way, by two."""
    folder = tmp_path_factory.mktemp("alike")
    finish(start(nursery, folder / "one", STILL, "toy in stages", world=1))
    for kind, settings in KINDS.items():
        finish(start(nursery, folder / kind, {**STILL, **settings}, "toy in stages"))
        finish(start(nursery, folder / f"divided {kind}", {**STILL, **settings}))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_are_one(alike: Path, kind: str) -> None:
    """Ten steps in two stages, clipped; sums in another order."""
    assert_close(alike / kind, alike / "one", 10)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ddp"])
def test_what_is_hard_to_divide(alike: Path, kind: str) -> None:
    """Frozen weights of another type, weights changed after a step, buffers that are handed on: as DDP has them."""
    assert_close(alike / f"divided {kind}", alike / "divided ddp", 10)
    ours, theirs = at(alike / f"divided {kind}", 10).weights, at(alike / "divided ddp", 10).weights
    torch.testing.assert_close(ours, theirs)
    assert float(ours["scale"].max()) <= 1.0


def late(step: int) -> int:
    """A sample of the second process in the second micro-batch of a step, when there are gradients to be forgotten."""
    return Order(40, 0).sample(8 * step + 7)


def assert_divided_is_one(
    nursery: Nursery, folder: Path, config: Mapping[str, Any], stage: int, family: str, steps: int
) -> None:
    """Two processes under ZeRO end where one without it does, and go on bit for bit from half way."""
    divided = {**config, **zero(stage)}
    one = start(nursery, folder / "one", config, family, world=1)
    finish(one, start(nursery, folder / "two", divided, family))
    assert_close(folder / "two", folder / "one", steps)
    cut(folder / "two", folder / "part", steps // 2)
    finish(start(nursery, folder / "part", divided, family))
    assert_equal_runs(folder / "two", folder / "part")


def cuts(nursery: Nursery, whole: Path, config: Mapping[str, Any], steps: range, name: str = "divided") -> None:
    """Continue the run of two from each of these steps; two groups at a time."""
    groups: list[tuple[Path, Group]] = []
    for step in steps:
        part = whole.with_name(f"{whole.name}-{step}")
        cut(whole, part, step)
        groups.append((part, start(nursery, part, config, name)))
        finish(*(group for _, group in groups[-2:-1]))
    finish(*(group for _, group in groups))
    for part, _ in groups:
        assert_equal_runs(whole, part)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_cut_is_resumed_bit_for_bit(tmp_path: Path, nursery: Nursery, stage: int) -> None:
    """Dropout, two stages, a step within them that is skipped for one rank's sake after a good micro-batch."""
    config = {
        **EACH_STEP,
        "data": {"length": 40, "torn_at": [late(1)], "explode_at": [late(3)]},
        "train": {"steps": 8, "micro_batches": 2},
        "schedule": {"name": "cosine", "warmup_steps": 2},
        **zero(stage),
    }
    whole = tmp_path / "whole"
    finish(start(nursery, whole, config, "fragile in stages"))
    skipped = [line["skipped_steps"] for line in lines(whole / "metrics.jsonl") if line["kind"] == "train"]
    assert skipped[-1] >= 2
    cuts(nursery, whole, config, range(1, 8), "fragile in stages")


SKIPS: Mapping[str, Any] = {
    **EACH_STEP,
    **QUIET,
    "model": {"dropout": 0.0},
    "data": {"length": 40, "torn_at": [late(1)], "explode_at": [late(3)]},
    "train": {"steps": 8, "micro_batches": 2},
}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_skipped_step_is_skipped_as_under_ddp(tmp_path: Path, nursery: Nursery, stage: int) -> None:
    """Batch normalisation, whose running mean a skipped step must not keep."""
    finish(start(nursery, tmp_path / "ddp", SKIPS, "fragile"))
    finish(start(nursery, tmp_path / "zero", {**SKIPS, **zero(stage)}, "fragile"))
    ours, theirs = (
        [(line["step"], line["skipped_steps"], "grad_norm" in line) for line in found if line["kind"] == "train"]
        for found in (lines(tmp_path / name / "metrics.jsonl") for name in ("zero", "ddp"))
    )
    assert ours == theirs
    for step in range(1, 9):
        torch.testing.assert_close(at(tmp_path / "zero", step).weights, at(tmp_path / "ddp", step).weights)


CROSSINGS = {
    "zero 3 to one process": (zero(3), 2, {"deepspeed": {"enabled": False}}, 1),
    "one process to zero 3": ({}, 1, zero(3), 2),
    "zero 1 to zero 3": (zero(1), 2, zero(3), 2),
    "zero 2, offload to zero 0 of one": (zero(2, cpu_offload=True), 2, zero(0), 1),
}


@pytest.mark.parametrize("crossing", CROSSINGS)
def test_a_run_goes_on_in_another_way(alike: Path, tmp_path: Path, nursery: Nursery, crossing: str) -> None:
    """From within the first stage, over the border of the second."""
    before, world, after, other = CROSSINGS[crossing]
    finish(start(nursery, tmp_path / "first", {**STILL, **before}, "toy in stages", world=world))
    cut(tmp_path / "first", tmp_path / "second", 3)
    finish(start(nursery, tmp_path / "second", {**STILL, **after}, "toy in stages", world=other))
    assert_close(tmp_path / "second", alike / "one", 10)


def test_a_kill_in_a_save_costs_nothing(tmp_path: Path, nursery: Nursery) -> None:
    config = {**EACH_STEP, "train": {"steps": 8}, **zero(3)}
    kill = "if rank == 0: before(checkpoint, 'save', 3, lambda: before(os, 'fsync', 3, send(9)))"
    groups = start(nursery, tmp_path / "whole", config), start(nursery, tmp_path / "killed", config, first=kill)
    finish(groups[0])
    assert groups[1].codes() == [-9, 1]
    assert groups[1].said(1).endswith(f"; `sensorium resume {tmp_path / 'killed'}` continues")
    assert (tmp_path / "killed/checkpoints/.step_00000003.tmp").is_dir()
    finish(start(nursery, tmp_path / "killed", config))
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")


CONTRASTIVE = [name for name in families.names() if families.load(name).accumulation == "inside-task"]


@pytest.mark.parametrize("family", CONTRASTIVE)
def test_contrastive_losses_in_chunks(tmp_path: Path, nursery: Nursery, family: str) -> None:
    """Validation between the steps included. Stage 0 divides nothing; unlike DDP it has a gradient of zero where a step
    has none. Stage 3 is refused in one line."""
    config = {**QUIET, "train": {"steps": 3}, "evaluate": {"every_steps": 2}}
    runs = {stage: start(nursery, tmp_path / str(stage), {**config, **zero(stage)}, family) for stage in (0, 3)}
    finish(runs[0], start(nursery, tmp_path / "2", {**config, **zero(2)}, family))
    # Where a gradient is rounding alone, a step of Adam is as large as any other.
    assert_close(tmp_path / "2", tmp_path / "0", 3, 1e-4, 2e-2)
    assert runs[3].codes() == [2, 2]
    assert runs[3].said(0).startswith("error: deepspeed.zero_stage 3 does not go with this family")
    assert not (tmp_path / "3").exists()


FIELDS: Mapping[str, Any] = {
    **QUIET,
    "model": {"gradient_checkpointing": True},
    "data": {"evaluation": {"answers": 1, "ranked": 0, "max_new_tokens": 2, "maps": 0}},
    "train": {"steps": 10, "batch_size": 4, "micro_batches": 2, "grad_clip": 1.0},
    "checkpoint": {"every_steps": 5, "every_epochs": None},
    "evaluate": {"every_epochs": None},
}


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(
    "model", [{"freeze_llm": False}, {"freeze_llm": True, "lora": {"rank": 2}}], ids=["all", "LoRA"]
)
def test_fields_into_a_language_model(tmp_path: Path, nursery: Nursery, model: Mapping[str, Any], stage: int) -> None:
    """Blocks that enter by hooks, layers computed twice, samples of different length: two are one, and go on bit for
    bit."""
    config = configuration.merge(FIELDS, {"model": model})
    assert_divided_is_one(nursery, tmp_path, config, stage, "climate_text", 10)


def test_bf16_is_that_of_a_plain_run(tmp_path: Path, nursery: Nursery) -> None:
    """Weights stay fp32, so that not only the losses of the same steps agree."""
    config = {**STILL, "train": {**STILL["train"], "precision": "bf16"}}
    for stage in (1, 3):
        finish(start(nursery, tmp_path / str(stage), {**config, **zero(stage)}, "toy in stages"))
    finish(start(nursery, tmp_path / "ddp", config, "toy in stages"), start(nursery, tmp_path / "fp32", STILL))
    for stage in (1, 3):
        assert_close(tmp_path / str(stage), tmp_path / "ddp", 10)
    with pytest.raises(AssertionError):
        assert_close(tmp_path / "fp32", tmp_path / "ddp", 10)


@pytest.mark.parametrize(("stage", "scale"), [(1, 2.0**66), (3, 2.0**127)])
def test_the_loss_scale_of_fp16(tmp_path: Path, nursery: Nursery, stage: int, scale: float) -> None:
    """It falls until the norm of the scaled gradient can be had, rises after good steps, and is stored."""
    config = {**EACH_STEP, **QUIET, "guard": {"max_skipped": 20}, "model": {"dropout": 0.0}, **zero(stage)}
    run, scaled = tmp_path / "run", f"scope = scaled({scale!r})\nscope.__enter__()"
    finish(start(nursery, run, config, "toy", first=scaled))
    counts = [int(line["skipped_steps"]) for line in lines(run / "metrics.jsonl") if line["kind"] == "train"]
    scales = [at(run, step).state["scaler"]["scale"] for step in range(1, 13)]
    assert scales == expected_scales(scale, counts)
    assert 1 < counts[-1] < 9
    for step in range(2, 13):
        same = torch.equal(at(run, step - 1).weights["head.weight"], at(run, step).weights["head.weight"])
        assert same == (counts[step - 2] < counts[step - 1])
    cut(run, tmp_path / "part", 6)
    finish(start(nursery, tmp_path / "part", config, "toy", first=scaled))
    assert at(tmp_path / "part", 12).state == at(run, 12).state


def listed(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


SHARDS = """
import shutil
class Wanting:
    def begun(self, *_): pass
    def stepped(self, *_): pass
    def validated(self, *_): pass
    def shards(self, saved):
        return run / "tags" / f"checkpoint_epoch_{saved.step}" if saved.step > 2 else None
    def saved(self, saved):
        names = sorted(path.name for path in (run / "tags").glob("*/*"))
        (run / f"told-{saved.step}").write_text(" ".join(names))
family = DIVIDED
loop.train(family, settings.resolve(family, "tiny", config), run, quiet=True, listener=Wanting())
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_its_own_files(tmp_path: Path, nursery: Nursery, stage: int, precision: str) -> None:
    """Under DeepSpeed's names, which depend on the precision as little as the weights; complete when it is said."""
    run = tmp_path / "run"
    config = {**QUIET, "train": {"steps": 4, "precision": precision}, **zero(stage)}
    config |= {"checkpoint": {"every_steps": 2, "every_epochs": None}, "evaluate": {"every_epochs": None}}
    finish(nursery.start(f"config, run = {config!r}, Path({str(run)!r})\n{SHARDS}"))
    states = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)] if stage else []
    models = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in (0, 1)]
    files = {*states, *(models if stage == 3 else ["mp_rank_00_model_states.pt"])}
    assert listed(run / "tags/checkpoint_epoch_4") == files
    assert listed(run / "tags") == {"checkpoint_epoch_4"} | (
        {"zero_to_fp32.py", "zero_to_torch.py"} if stage else set()
    )
    assert (run / "told-4").read_text().split() == sorted(files)
    assert (run / "told-2").read_text() == ""
    if stage < 3:
        module = torch.load(run / "tags/checkpoint_epoch_4/mp_rank_00_model_states.pt", weights_only=False)["module"]
        stored = at(run, 4).weights
        assert module.keys() == stored.keys()  # none of the frozen ones
        torch.testing.assert_close(module, stored, rtol=0, atol=0)


def test_without_a_launcher(tmp_path: Path, nursery: Nursery) -> None:
    """One process that finds nothing in its environment, several runs in it, and nothing of it left behind."""
    source = f"""
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU"):
    del os.environ[name]
before_it = dict(os.environ)
run = Path({str(tmp_path / "run")!r})
for steps in (4, 8):
    config = {STILL!r} | {zero(2)!r} | {{"train": {{"steps": steps}}}}
    loop.train(DIVIDED, settings.resolve(DIVIDED, "tiny", config), run, resume=steps > 4, quiet=True)
assert dict(os.environ) == before_it
assert not torch.distributed.is_initialized()
"""
    finish(nursery.start(source, 1))
    assert at(tmp_path / "run", 8).state["processes"] == 1


def test_what_was_trained_so_is_used_without(tmp_path: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(start(nursery, tmp_path / "run", {**QUIET, "train": {"steps": 4}, **zero(3)}))
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    found = evaluate_run(DIVIDED, tmp_path / "run", "test", "latest", quiet=True)
    stored = rundir.read_json(tmp_path / "run/evaluation/test.json")
    assert found.metrics == pytest.approx(stored["metrics"])
    with pytest.raises(ConfigError, match=r"DeepSpeed is not installed: pip install 'sensorium\[deepspeed\]'"):
        loop.train(DIVIDED, toy_config({**QUIET, **zero(3)}), tmp_path / "other", quiet=True)


LAUNCHED = """
import sys
sys.path.insert(0, {tests!r})
from helpers import TOY, toy_config
from pathlib import Path
from sensorium import guide
from sensorium.engine import loop
parser = guide.Parser("")
parser.flag("--steps", int, 1, "")
given = parser.given()
loop.train(TOY, toy_config({{"train": {{"steps": given["steps"]}}, "track": {{"tensorboard": False}}}}), Path({run!r}))
"""


def test_the_launcher_of_deepspeed(tmp_path: Path) -> None:
    """`deepspeed script.py`: two processes, stage 2 without being asked, and the word that it adds is taken away."""
    script = tmp_path / "script.py"
    script.write_text(LAUNCHED.format(tests=str(Path(__file__).parent), run=str(tmp_path / "run")))
    launcher = "from deepspeed.launcher.runner import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", launcher, "--num_accelerators", "2", str(script), "--steps", "3"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Device: cpu, 2 processes, fp32, DeepSpeed ZeRO 2" in done.stdout
    assert at(tmp_path / "run", 3).state["processes"] == 2
