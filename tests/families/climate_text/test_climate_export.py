"""The encoder out of a downloaded file: every form of file, what is refused, the memory it takes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from climate_rows import make_field
from prithvi_files import WIDTH, needs_prithvi, published, whole
from torch import Tensor
from typer.testing import CliRunner

from sensorium import cli
from sensorium.data.fields.channels import SETS
from sensorium.errors import CheckpointError, ConfigError, DataError, DiskError
from sensorium.families.climate_text import export_encoder as module
from sensorium.families.climate_text.config import ModelConfig
from sensorium.families.climate_text.encoders import FieldFacts, open_encoder, trained_encoder
from sensorium.families.climate_text.export_encoder import export_encoder
from sensorium.families.climate_text.prithvi import PrithviEncoder
from sensorium.families.climate_text.prithvi_weights import ABOUT, checksum_of, find_weights

pytestmark = needs_prithvi
STATE = "model_state"
HEADS_BESIDE = "params:\n  n_heads: 4\n  embed_dim: 32\n"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return published()


@pytest.fixture
def download(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    """A file as the hub has it, with its card and its configuration."""
    path = tmp_path / "hub" / "prithvi.pt"
    path.parent.mkdir()
    torch.save({STATE: state, "epoch": 3}, path)
    path.with_name("config.yaml").write_text(HEADS_BESIDE)
    path.with_name("README.md").write_text("---\nlicense: mit\ntags: [weather]\n---\n# Prithvi\nlicense: other\n")
    return path


def opened(path: Path, **changes: Any) -> PrithviEncoder:
    encoder = open_encoder(ModelConfig(encoder_path=str(path), **changes), FieldFacts(160, 2, 4))
    assert isinstance(encoder, PrithviEncoder)
    return encoder


def without_encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the published extractor keeps."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(("decoder", "unembed", "output"))}


FORMS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "model_state": lambda state: {"model_state": state},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "module": lambda state: {"module": state, "global_step": 7},
    "plain": lambda state: dict(state),
    "data parallel": lambda state: {"model_state": {f"module.{name}": tensor for name, tensor in state.items()}},
    "extractor": lambda state: {
        "model_state_dict": without_encoder(state),
        "config": {"params": {"n_heads": 4}, "data": "x"},
    },
}


@torch.no_grad()
def test_every_form_of_the_same_weights_gives_the_same_tokens(
    tmp_path: Path, state: dict[str, Tensor], download: Path
) -> None:
    batch = make_field(rows=1)
    expected, seen = opened(download).encode(batch)[0], {opened(download).identity}
    for name, form in FORMS.items():
        path = tmp_path / name / "weights.pt"
        path.parent.mkdir()
        torch.save(form(state), path)
        if name != "extractor":  # that one says itself how many heads there are
            path.with_name("config.yaml").write_text(HEADS_BESIDE)
        assert torch.equal(opened(path).encode(batch)[0], expected), name
        seen.add(opened(path).identity)
    line = export_encoder(download, tmp_path / "out", shard=20_000)
    assert torch.equal(opened(tmp_path / "out").encode(batch)[0], expected)
    seen.add(opened(tmp_path / "out").identity)
    assert len(seen) == 1
    assert line == "87,808 weights in fp32, 0.00 GB of 0.00 GB"


def test_an_export_says_what_it_is(tmp_path: Path, download: Path, state: dict[str, Tensor]) -> None:
    told: list[tuple[int, int]] = []
    out = tmp_path / "out"
    export_encoder(download, out, "bf16", shard=60_000, advance=lambda *two: told.append(two))
    about = json.loads((out / ABOUT).read_text())
    assert about["licence"] == "mit"
    assert about["source"]["name"] == "prithvi.pt"
    assert about["source"]["state"] == STATE
    assert about["bytes"] == 2 * about["weights"] == 2 * 87_808
    assert {path.name for path in out.iterdir()} == {ABOUT, *about["files"]}
    assert len(about["files"]) == len(told) > 2
    assert told[-1] == (2 * 87_808, 2 * 87_808)
    weights = find_weights(out).read(None)
    expected = {name: state[name].bfloat16() for name in weights}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())
    assert opened(out).patch_embedding.proj.weight.dtype == torch.float32


def test_scalers_are_those_of_the_last_eight(tmp_path: Path, download: Path, state: dict[str, Tensor]) -> None:
    export_encoder(download, tmp_path / "out")
    for path in (download, tmp_path / "out"):
        trained = trained_encoder(ModelConfig(encoder_path=str(path)))
        assert trained is not None
        scalers = trained.scalers
        assert scalers.field.names == SETS["merra2-160"]
        assert scalers.static.names == ("FRACI", "FRLAND", "FROCEAN", "PHIS")
        assert scalers.climatology == scalers.field
        for kind, name in (("mean", "mu"), ("std", "sigma")):
            static = state[f"static_input_scalers_{name}"].flatten()
            assert getattr(scalers.field, kind) == tuple(state[f"input_scalers_{name}"].flatten().tolist())
            assert getattr(scalers.static, kind) == tuple(static[7:].tolist())
            assert opened(path).day_hour[kind == "std"] == tuple(static[3:7].tolist())


BAD: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "unknown": (lambda s: {STATE: s | {"encoder.extra": torch.ones(1)}}, "unknown are 1, first encoder.extra"),
    "renamed": (
        lambda s: {
            STATE: {
                ("enc." + n if n.startswith("encoder.lgl_block.transformers.2.ff.0") else n): t for n, t in s.items()
            }
        },
        "unknown are 2, first enc.encoder.lgl_block",
    ),
    "missing": (
        lambda s: {STATE: {n: t for n, t in s.items() if n != "lead_time_embedding.bias"}},
        "missing is lead_time_embedding.bias",
    ),
    "shape": (
        lambda s: {STATE: s | {"lead_time_embedding.bias": torch.ones(9)}},
        r"lead_time_embedding.bias has shape \[9\]; expected is \[8\]",
    ),
    "scalers": (
        lambda s: {STATE: {n: t for n, t in s.items() if n != "static_input_scalers_mu"}},
        "static_input_scalers_mu is missing; without its scalers",
    ),
    "another model": (
        lambda s: {STATE: {"weight": torch.ones(2)}},
        "no state of Prithvi WxC.*; its keys are model_state",
    ),
    "list": (lambda s: [s], "holds a list; expected a state"),
    "channels": (
        lambda s: {STATE: s | {"input_scalers_mu": torch.ones(80), "input_scalers_sigma": torch.ones(80)}},
        "reads 80 channels and 88 besides",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_other_files_are_refused(tmp_path: Path, state: dict[str, Tensor], name: str) -> None:
    make, line = BAD[name]
    path = tmp_path / "weights.pt"
    torch.save(make(state), path)
    path.with_name("config.yaml").write_text(HEADS_BESIDE)
    with pytest.raises(CheckpointError, match=line):
        opened(path)
    with pytest.raises(CheckpointError, match=line):
        export_encoder(path, tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["config.yaml", "weights.pt"]


def test_what_is_not_finite_is_not_exported(tmp_path: Path, download: Path, state: dict[str, Tensor]) -> None:
    torch.save({STATE: state | {"lead_time_embedding.bias": torch.full((8,), torch.nan)}}, download)
    with pytest.raises(CheckpointError, match="is not finite"):
        export_encoder(download, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["hub"]


def test_heads_that_nobody_names_are_asked_for(download: Path) -> None:
    download.with_name("config.yaml").unlink()
    with pytest.raises(CheckpointError, match=f"how many heads an encoder of width {WIDTH} has; put the config.yaml"):
        opened(download)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["EVIL"],)


def test_code_in_a_file_runs_only_where_it_is_trusted(
    tmp_path: Path, download: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"
    monkeypatch.setenv("EVIL", str(mark))
    torch.save({STATE: state, "more": Evil()}, download)
    with pytest.raises(CheckpointError, match="holds more than tensors and plain values"):
        export_encoder(download, tmp_path / "out")
    assert not mark.exists()
    original = torch.load

    def once(*given: Any, **named: Any) -> Any:
        if mark.exists():
            mark.rmdir()
        return original(*given, **named)

    monkeypatch.setattr(torch, "load", once)
    export_encoder(download, tmp_path / "out", trusted=True)
    assert mark.exists()


def test_a_damaged_export_is_refused(tmp_path: Path, download: Path) -> None:
    out = tmp_path / "out"
    export_encoder(download, out, shard=100_000)
    with pytest.raises(DataError, match="exists already; name a new folder"):
        export_encoder(download, out)
    with pytest.raises(CheckpointError, match=r"a folder; give the .pt file"):
        export_encoder(out, tmp_path / "again")
    first = next(out.glob("model-00001-*"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model-00001.* is damaged \(its checksum differs\)"):
        opened(out)
    first.unlink()
    with pytest.raises(CheckpointError, match=r"model-00001.* is missing"):
        opened(out)
    first.write_bytes(whole)
    about = json.loads((out / ABOUT).read_text())
    (out / ABOUT).write_text(json.dumps({**about, "dtype": "bf16"}))
    with pytest.raises(CheckpointError, match="was edited"):
        opened(out)
    about["shape"]["heads"] = "many"
    content = {key: value for key, value in about.items() if key != "checksum"}
    (out / ABOUT).write_text(json.dumps({**content, "checksum": checksum_of(content)}))
    with pytest.raises(CheckpointError, match=r"damaged at shape.heads"):
        opened(out)
    (out / ABOUT).unlink()
    with pytest.raises(CheckpointError, match=r"no encoder.json there"):
        opened(out)
    with pytest.raises(ConfigError, match="no such file or folder"):
        opened(tmp_path / "nothing")


def test_a_full_disk_leaves_nothing(tmp_path: Path, download: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise DiskError("the encoder in fp32 needs more")

    monkeypatch.setattr(module, "require_space", full)
    with pytest.raises(DiskError, match="needs more"):
        export_encoder(download, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["hub"]


def test_the_command_exports_and_says_what_it_needs(tmp_path: Path, download: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(cli.app, ["export", *words])

    out = tmp_path / "new" / "out"
    found = run("climate-encoder", str(download), "--output", str(out), "--dtype", "bf16")
    assert found.exit_code == 0, found.output
    assert found.stdout.splitlines()[-1] == f"{out}: 87,808 weights in bf16, 0.00 GB of 0.00 GB"
    assert trained_encoder(ModelConfig(encoder_path=str(out))) is not None
    for words, line in (
        (("climate-encoder", str(download)), "--output NEW_FOLDER"),
        (("climate-encoder", str(download), "--output", "x", "--dtype", "fp8"), "--dtype fp8: allowed are fp32, bf16"),
        (("climate-encoder", "none.pt", "--output", "x"), "none.pt: no such file; give the downloaded .pt"),
        (("runs/first", str(download)), "belongs to `sensorium export climate-encoder SOURCE`"),
    ):
        found = run(*words)
        assert isinstance(found.exception, ConfigError)
        assert line in str(found.exception)
    assert not Path("x").exists()


def test_an_export_holds_one_shard_and_not_the_source(tmp_path: Path) -> None:
    from sensorium.engine.check_memory import read_peak, reset_peak

    source, cpu = tmp_path / "large.pt", torch.device("cpu")
    large = whole(embed_dim=256, n_blocks_encoder=4, mlp_multiplier=4).state_dict()
    torch.save({STATE: large, "optimizer": {"exp_avg": torch.zeros(10_000_000)}}, source)
    source.with_name("config.yaml").write_text(HEADS_BESIDE)
    encoder = sum(tensor.nbytes for tensor in large.values())
    del large
    assert source.stat().st_size > encoder + 40_000_000 > 70_000_000
    if not reset_peak(cpu):
        pytest.skip("this system does not tell peak memory")

    def peak(action: Callable[[], object]) -> int:
        reset_peak(cpu)
        before = read_peak(cpu)
        action()
        return read_peak(cpu) - before

    assert peak(lambda: export_encoder(source, tmp_path / "small", shard=4_000_000)) < encoder / 2
    assert peak(lambda: export_encoder(source, tmp_path / "one")) > encoder  # the negative twins: all at once
    assert peak(lambda: torch.load(source, weights_only=True)) > encoder + 10_000_000  # and not mapped
