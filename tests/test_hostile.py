"""Files made to do harm, in every place but a picture or sound: refused in one line, and nothing in them is run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import TOY, toy_config
from hostile import NO_FILES, PICKLES, Bomb, soon
from transformers import BertConfig, BertModel

from sensorium import config, exported, proof, reading
from sensorium.data import manage, readers
from sensorium.engine import checkpoint, continuation, loop, portable, rundir, session, settings
from sensorium.engine.listener import Saved
from sensorium.errors import CheckpointError, ConfigError, DataError, SensoriumError
from sensorium.parts.encoders import EncoderOptions, open_encoder
from sensorium.parts.encoders_base import Request
from sensorium.parts.encoders_image import open_efficientnet
from sensorium.parts.encoders_text import _byte_tokenizer
from sensorium.parts.whisper_ct2 import converted


def refused(kind: type[SensoriumError], call: Callable[[], object], reason: str, *names: object) -> None:
    """``call`` ends soon, in one line of ours that gives the reason and names the file."""
    with soon(), pytest.raises(kind, match=reason) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 1000
    assert all(str(name) in said for name in names)


# --- pickles


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "run"
    overrides = {"train": {"steps": 2}, "checkpoint": {"every_steps": 1}, "track": {"tensorboard": False}}
    loop.train(TOY, toy_config(overrides), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "bert"
    tokenizer = _byte_tokenizer()
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **size))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def copied(folder: Path, target: Path, without: str) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        if file.name != without:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def opened(folder: Path, cache: Path) -> object:
    return open_encoder("text", str(folder), EncoderOptions(max_tokens=32), cache, "cpu")


@pytest.mark.parametrize("name", PICKLES)
def test_the_bombs_go_off_where_pickles_are_trusted(tmp_path: Path, name: str) -> None:
    """The twin of all that follow: whoever unpickles these files runs what is in them."""
    path, marker = tmp_path / "x.pt", tmp_path / "marker"
    path.write_bytes(PICKLES[name](marker))
    if name.endswith(".pt file"):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert marker.is_dir()


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_in_place_of_weights_is_refused(tmp_path: Path, bert: Path, name: str) -> None:
    marker = tmp_path / "marker"
    content = PICKLES[name](marker)
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    warm = toy_config({"train": {"warm_start": str(path)}})
    refused(CheckpointError, lambda: session.warm_start(warm), "damaged, or holds more than tensors", path)
    refused(CheckpointError, lambda: continuation.continue_from(TOY, path, {}), "holds more than tensors", path)

    folder = copied(bert, tmp_path / "bin", "model.safetensors")
    opened(folder, tmp_path)
    (folder / "pytorch_model.bin").write_bytes(content)
    refused(ConfigError, lambda: opened(folder, tmp_path), "cannot be loaded", folder)
    folder = copied(bert, tmp_path / "safe", "pytorch_model.bin")
    (folder / "model.safetensors").write_bytes(content)
    refused(ConfigError, lambda: opened(folder, tmp_path), "cannot be loaded", folder)

    request = Request("package:efficientnet-lite0", EncoderOptions(), "cpu")
    refused(ConfigError, lambda: open_efficientnet(path, request), "does not hold the weights", path)
    (tmp_path / "ct2").mkdir()
    (tmp_path / "ct2" / "model.bin").write_bytes(content)
    refused(ConfigError, lambda: converted(tmp_path / "ct2", tmp_path), "not a Whisper model", tmp_path / "ct2")
    assert not marker.exists()


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_in_place_of_a_checkpoint_or_an_export_is_refused(tmp_path: Path, run: Path, name: str) -> None:
    """Also where all sizes and checksums are right, as whoever made the file would make them."""
    marker = tmp_path / "marker"
    content = PICKLES[name](marker)
    folder = copied(checkpoint.folder_of(run, 2), tmp_path / "step_00000002", "")
    manifest = proof.unseal((folder / checkpoint.MANIFEST).read_bytes(), checkpoint.FORMAT)
    for part in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.STATE):
        before = (folder / part).read_bytes()
        for data in (before, content):
            manifest["files"][part] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            (folder / part).write_bytes(data)
            (folder / checkpoint.MANIFEST).write_bytes(proof.seal(manifest))
            if data is content:
                refused(CheckpointError, lambda: checkpoint.load(folder, "toy"), "cannot be read", folder)
            else:
                checkpoint.load(folder, "toy")
        manifest["files"][part] = {"size": len(before), "sha256": hashlib.sha256(before).hexdigest()}
        (folder / part).write_bytes(before)

    loaded = session.open_run(TOY, run, "latest")
    carried = tmp_path / "export"
    carried.mkdir()
    exported.write_weights(carried, loaded)
    exported.write_config(carried, exported.describe(loaded, "hf", {}, loaded.facts))
    exported.read(TOY, carried)
    (carried / exported.WEIGHTS).write_bytes(content)
    refused(CheckpointError, lambda: exported.read(TOY, carried), "is damaged", carried / exported.WEIGHTS)
    assert not marker.exists()


def test_pickles_and_arrays_in_place_of_data_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    line = {"id": "1", "split": "train", "image": "a.png", "audio": "a.wav"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line))
    for content in (pickle.dumps(Bomb(marker)), b"\x93NUMPY\1\0v\0" + pickle.dumps(Bomb(marker)), b"PK\3\4npz"):
        (tmp_path / "a.png").write_bytes(content)
        (tmp_path / "a.wav").write_bytes(content)
        problems = manage.verify_dataset(readers.read("native", tmp_path)).problems
        assert len(problems) == 2
        assert ("not a picture" in problems[0], "cannot be decoded" in problems[1]) == (True, True)
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / "manifest.jsonl").write_bytes(content)
        with pytest.raises(DataError):
            readers.read("native", tmp_path / "x")
    assert not marker.exists()


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, bert: Path, kind: str) -> None:
    path = tmp_path / "best.pt"
    NO_FILES[kind](path)
    refused(CheckpointError, lambda: portable.read_pt(path), "cannot be read|a folder|damaged", path)
    path = tmp_path / "a.yaml"
    NO_FILES[kind](path)
    if kind == "empty file":
        assert config.load_file(path) == {}
    else:
        refused(ConfigError, lambda: config.load_file(path), "cannot be read", path)
    root = tmp_path / "native"
    root.mkdir()
    NO_FILES[kind](root / "manifest.jsonl")
    refused(DataError, lambda: readers.read("native", root), "cannot be read|no items", root / "manifest.jsonl")
    NO_FILES[kind](tmp_path / "facts.json")
    refused(CheckpointError, lambda: rundir.read_json(tmp_path / "facts.json"), "cannot be read", "facts.json")
    for name in ("config.json", "model.safetensors"):
        folder = copied(bert, tmp_path / name.partition(".")[0], "pytorch_model.bin")
        (folder / name).unlink()
        NO_FILES[kind](folder / name)
        refused(ConfigError, lambda folder=folder: opened(folder, tmp_path), "no plain file|cannot be", folder)


def test_what_may_not_be_read_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("seed: 1")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("whoever runs this may read everything")
    refused(ConfigError, lambda: config.load_file(path), r"cannot be read \(Permission denied\)", path)


# --- folders of encoders


def edited(name: str, **values: object) -> Callable[[Path, Path], None]:
    def edit(folder: Path, marker: Path) -> None:
        del marker
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return edit


def with_code(name: str, **values: object) -> Callable[[Path, Path], None]:
    def edit(folder: Path, marker: Path) -> None:
        code = f"import os\nos.mkdir({str(marker)!r})\nclass Config: pass\nclass Model: pass\n"
        (folder / "evil.py").write_text(code)
        edited(name, **values)(folder, marker)

    return edit


def replaced(name: str, content: bytes) -> Callable[[Path, Path], None]:
    def edit(folder: Path, marker: Path) -> None:
        del marker
        (folder / name).write_bytes(content)

    return edit


AUTO = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Model", "evil.Model"]}


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (with_code("config.json", auto_map=AUTO, model_type="evil"), "custom code"),
        (edited("config.json", attn_implementation="kernels-community/flash-attn"), "wants code of the hub to run"),
        (edited("config.json", _attn_implementation="someone/evil"), "wants code of the hub to run"),
        (edited("config.json", text_config={"_attn_implementation": "someone/evil"}), "wants code of the hub to run"),
        (edited("config.json", max_position_embeddings="many"), "cannot be loaded"),
        (edited("config.json", hidden_size=10**9), "cannot be loaded"),
        (edited("config.json", vocab_size=10**12), "cannot be loaded"),
        (edited("config.json", model_type=["bert"]), "cannot be loaded"),
        (edited("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "cannot be loaded"),
        (replaced("config.json", b'{"a":' * 100_000), "cannot be read"),
        (replaced("config.json", b"\xff\xfe"), "cannot be read"),
        (replaced("config.json", b"[]"), "no JSON object"),
        (replaced("tokenizer.json", b'{"a":' * 100_000), "no tokenizer"),
        (replaced("tokenizer.json", b"{}"), "no tokenizer"),
        (replaced("model.safetensors", b""), "cannot be loaded"),
        (replaced("model.safetensors", (2**40).to_bytes(8, "little") + b"{}"), "cannot be loaded"),
        (replaced("model.safetensors", (2).to_bytes(8, "little") + b"{}"), "of its weights are not in"),
    ],
)
def test_a_hostile_encoder_is_refused(
    tmp_path: Path, bert: Path, edit: Callable[[Path, Path], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *words: "y")  # transformers would ask whether to run code
    folder = copied(bert, tmp_path / "model", "pytorch_model.bin")
    opened(folder, tmp_path)
    edit(folder, tmp_path / "marker")
    refused(ConfigError, lambda: opened(folder, tmp_path), reason, folder)
    assert not (tmp_path / "marker").exists()


def test_code_beside_a_known_model_is_left_alone(tmp_path: Path, bert: Path) -> None:
    folder = copied(bert, tmp_path / "model", "pytorch_model.bin")
    for name in ("config.json", "tokenizer_config.json"):
        with_code(name, auto_map=AUTO)(folder, tmp_path / "marker")
    opened(folder, tmp_path)
    assert not (tmp_path / "marker").exists()


# --- configuration


def laughs(shape: Callable[[str], str]) -> str:
    """Each line is ten times the one before."""
    lines = [f"a0: &a0 {shape('lol')}"]
    return "\n".join([*lines, *(f"a{n}: &a{n} {shape(f'*a{n - 1}')}" for n in range(1, 10))])


DEEP = 100_000
SHORT = 90_000


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", "[" * DEEP, "nested too deeply"),
        ("a.json", '{"a":' * 30_000 + "1" + "}" * 30_000, "nested too deeply"),
        ("a.json", '{"a":' * 100 + "1" + "}" * 100, "nested too deeply"),
        ("a.yaml", "a: " + "[" * DEEP, "nested too deeply"),
        ("a.yaml", "a: " + "[" * 70 + "]" * 70, "nested deeper than 64 levels"),
        ("a.toml", "a = " + "[" * DEEP, "nested too deeply"),
        ("a.toml", "a." * SHORT + "a = 1", "a key of more than 64 parts"),
        ("a.toml", "[" + "'a' . " * 30_000 + "a]", "a key of more than 64 parts"),
        ("a.json", '{"a": "' + "x" * 10**6 + '"}', "larger than 200,000 bytes"),
        ("a.json", '{"optim": {"lr": NaN}}', "optim.lr: not a finite number"),
        ("a.json", '{"optim": {"lr": -Infinity}}', "optim.lr: not a finite number"),
        ("a.json", '{"optim": {"lr": 1e999}}', "optim.lr: not a finite number"),
        ("a.yaml", "optim: {lr: .inf}", "optim.lr: not a finite number"),
        ("a.toml", "optim.lr = nan", "optim.lr: not a finite number"),
        ("a.json", '{"seed": 1, "seed": 2}', "seed"),
        ("a.json", f'{{"seed": {"9" * DEEP}}}', "4300 digits"),
        ("a.yaml", f"seed: {'9' * DEEP}", "4300 digits"),
        ("a.toml", f"seed = {'9' * DEEP}", "4300 digits"),
        ("a.yaml", f"seed: 0x{'f' * DEEP}", "seed: a whole number beyond 64 bits"),
        ("a.toml", f"seed = 0x{'f' * DEEP}", "seed: a whole number beyond 64 bits"),
        ("a.yaml", "seed: " + "1:" * 5000 + "1", "seed: a whole number beyond 64 bits"),
        ("a.yaml", "a: !!python/object/apply:os.mkdir [marker]", "constructor for the tag"),
        ("a.yaml", "!!python/name:os.system", "constructor for the tag"),
        ("a.yaml", laughs(lambda one: f"[{','.join([one] * 10)}]"), "more than 200,000 values"),
        (
            "a.yaml",
            laughs(lambda one: f"{{{','.join(f'k{n}: {one}' for n in range(10))}}}"),
            "more than 200,000 values",
        ),
        ("a.yaml", "a: &a [*a]", "recursive"),
        ("a.yaml", "? [1, 2]\n: 3", "a key that is a list"),
        ("a.yaml", "1: 2", "the key 1 is no text"),
        ("a.yaml", "a: !!bool maybe", "not what its !!tag says"),
        ("a.yaml", "a: !!timestamp x", "not what its !!tag says"),
        ("a.yaml", "a: !!set {b, c}", "a: found a set"),
        ("a.yaml", "a: 2001-02-03", "a: found a date"),
        ("a.toml", "a = 2001-02-03", "a: found a date"),
        ("a.json", '{"a": "\\ud800"}', "a: half of a surrogate pair"),
        ("a.yaml", "a: \0", "special characters are not allowed"),
    ],
)
def test_a_hostile_configuration_is_refused(
    tmp_path: Path, name: str, text: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_text(text)
    refused(ConfigError, lambda: config.load_file(path), reason, path)
    assert not (tmp_path / "marker").exists()


def test_a_yaml_loader_that_trusts_would_run_it(tmp_path: Path) -> None:
    """The twin: it is the safe loader that refuses the tag."""
    yaml.load(f"!!python/object/apply:os.mkdir [{tmp_path}/marker]", Loader=yaml.UnsafeLoader)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "word",
    [
        "a=" + "[" * 1000, "a=" + "[" * 70 + "]" * 70, "seed=0x" + "f" * 100, "optim.lr=.nan", "a=!!bool maybe",
        "a={[1]: 2}", "a={1: 2}", "a=2001-02-03", ".".join("a" * 100) + "=1", "a=!!python/name:os.system",
    ],
)  # fmt: skip
def test_a_hostile_override_is_refused(word: str) -> None:
    refused(ConfigError, lambda: config.parse_overrides([word]), "override|cannot be read")


@pytest.mark.parametrize("preset", [["tiny"], {"tiny": 1}, 5, None])
def test_a_preset_that_is_no_name_is_refused(preset: Any) -> None:
    refused(ConfigError, lambda: settings.resolve(TOY, preset), "has no preset")


def test_a_long_value_is_not_repeated_in_full() -> None:
    with pytest.raises(ConfigError) as caught:
        toy_config({"optim": {"lr": "x" * 10**6}})
    assert len(str(caught.value)) < 1000
    refused(ConfigError, lambda: config.parse_overrides(["x" * 10**6]), "is not an override")


def test_sensible_trees_are_plain() -> None:
    tree: Any = {"a": [1, 2.5, None, True, "é", {"b": []}], "c": (1,), "d": -(2**63)}
    for _ in range(60):
        tree = {"x": tree}
    assert reading.problem_of(tree) is None
    tree["loop"] = tree
    assert reading.problem_of(tree) == "nested deeper than 64 levels"


# --- .pt files that are right in all but what they claim


def changed(run: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    portable.write_pt(Saved(run, checkpoint.folder_of(run, 2), 2, 0.8, True, 1.25), path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def deep(levels: int) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for _ in range(levels):
        tree = {"a": tree}
    return tree


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["weights"].update(w=torch.ones(()).expand(10**13)), "claim more numbers than the file holds"),
        (lambda c: c["weights"].update(w=torch.eye(2).to_sparse()), "must be plain tensors"),
        (lambda c: c["weights"].update(w=torch.empty(2, device="meta")), "must be plain tensors|damaged"),
        (lambda c: c["weights"].update({1: torch.ones(1)}), "must be plain tensors"),
        (lambda c: c["config"].update(deep(200)), "nested deeper than 64 levels"),
        (lambda c: c["facts"].update(a=float("nan")), "facts.a: not a finite number"),
        (lambda c: c["config"].update({1: 2}), "the key 1 is no text"),
        (lambda c: c["checkpoint"].update(absolute=""), "checkpoint.absolute"),
        (lambda c: c["checkpoint"].update(absolute="step_1"), "checkpoint.absolute"),
        (lambda c: c["checkpoint"].update(relative="a\0b/checkpoints/step_1"), "checkpoint.relative"),
        (lambda c: c["checkpoint"].update(absolute="/dev/checkpoints/zero"), "checkpoint.absolute"),
    ],
)
def test_a_lying_pt_file_is_refused(
    tmp_path: Path, run: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    portable.read_pt(changed(run, tmp_path / "good.pt", lambda content: None))
    path = changed(run, tmp_path / "best.pt", change)
    refused(CheckpointError, lambda: portable.read_pt(path), reason, path)


def test_a_packed_pt_file_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """A megabyte may hold a gigabyte of zeros."""
    path = tmp_path / "best.pt"
    torch.save({"format": portable.FORMAT, "checkpoint": {}, "w": torch.zeros(1_000_000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert path.stat().st_size < 20_000
    assert torch.load(path, weights_only=True)["w"].numel() == 1_000_000  # torch itself would unpack it
    refused(CheckpointError, lambda: portable.read_pt(path), "damaged, or holds more", path)
    refused(CheckpointError, lambda: portable.read_pt(tmp_path / "plain.pt"), "damaged at 'family'")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ('{"a":' * DEEP, "nested too deeply"),
        ("[]", "found a list"),
        ("{}", "it names no format"),
        ('{"facts": {}, "facts": {}}', "'facts' is given twice"),
        ('{"format": 1, "facts": {}, "fingerprints": {}}', "its checksum differs"),
        ('{"facts": {"a": NaN}, "fingerprints": {}}', "NaN is no number of JSON"),
        ('{"facts": {"a": "\\ud800"}, "fingerprints": {}}', "surrogates not allowed"),
    ],
)
def test_hostile_facts_of_a_run_are_refused(tmp_path: Path, run: Path, facts: str, reason: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    session.open_run(TOY, copy, "latest")
    (copy / "facts.json").write_text(facts)
    refused(CheckpointError, lambda: session.open_run(TOY, copy, "latest"), reason, copy / "facts.json")


def test_an_export_that_describes_another_model_is_refused(tmp_path: Path, run: Path) -> None:
    loaded = session.open_run(TOY, run, "latest")
    exported.write_weights(tmp_path, loaded)
    right = exported.describe(loaded, "hf", {}, loaded.facts)
    for content, reason in (
        ({**right, "facts": 5}, "another kind: facts"),
        ({**right, "model": None}, "another kind: model"),
        ({key: value for key, value in right.items() if key != "digest"}, "another kind: digest"),
        ({**right, "family": ""}, "of family '', not 'toy'"),
        ({**right, "model": {"width": 2048}}, "does not fit the model of this configuration"),
    ):
        exported.write_config(tmp_path, content)
        refused(CheckpointError, lambda: exported.read(TOY, tmp_path), reason, tmp_path)
    exported.write_config(tmp_path, right)
    exported.read(TOY, tmp_path)
    family = replace(TOY, task=lambda config, facts: facts["no such fact"])
    refused(CheckpointError, lambda: exported.read(family, tmp_path), "facts describe no model", tmp_path)
