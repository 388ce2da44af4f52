"""Words made to do harm: what a terminal would obey never reaches one, and a report shows captions, not markup."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from hostile import make_fifo, png, soon, wav
from rich.console import Console
from typer.testing import CliRunner

from sensorium import cli, config
from sensorium.data import readers
from sensorium.engine import rundir, tables, tracking
from sensorium.engine.contract import Card, Evaluation, Gallery, Hit, Shown, Table
from sensorium.engine.files import json_line, read_lines
from sensorium.engine.report import write_report
from sensorium.engine.results import Result, write_result
from sensorium.errors import CheckpointError, ConfigError, DataError, printable, shown

CLEARS = "\x1b[2J\x1b]0;title\x07\x9b31m"  # the screen, the title, colours
TURNS = "\u202e\u2066"
EVIL = f"dog{CLEARS}{TURNS}\r\x08\ud800\u2028</script><b>[/red]"
OBEYED = ("\x1b", "\x07", "\x9b", "\x08", "\r", "\u202e", "\u2066", "\ud800", "\u2028")


def harmless(text: str) -> bool:
    return not any(sign in text for sign in OBEYED)


def test_what_is_harmless_stays_as_it_is() -> None:
    for text in ("a\tb\nc", "é日本語", "👩‍👩‍👧", "שלום\u200f", "\N{NO-BREAK SPACE}", "\\u001b"):
        assert printable(text) == text
    assert printable("\x1b\u202e\ud800\x9b") == r"\u001b\u202e\ud800\u009b"
    assert harmless(printable(EVIL))
    assert not harmless(EVIL)
    assert json.loads(printable(json.dumps({"a": EVIL}, ensure_ascii=False))) == {"a": EVIL}


def test_an_error_line_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise DataError(f"{EVIL}.png: not a picture")

    with pytest.raises(SystemExit):
        shown(fail)
    said = capsys.readouterr().err
    assert harmless(said)
    assert said.startswith(r"error: dog\u001b[2J")


class Found:
    """A searcher whose data set holds hostile captions."""

    def search(self, query: object, among: object, k: int, rerank: int) -> list[Hit]:
        return [Hit(0.5, EVIL, EVIL, f"/x/{EVIL}.png", None)]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_search_results_are_harmless(monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    monkeypatch.setattr("sensorium.use.load", lambda run: Found())
    done = CliRunner().invoke(cli.app, ["search", "run", "dog", *options])
    assert done.exit_code == 0, done.output
    assert harmless(done.output)
    if options:
        assert json.loads(done.output)[0]["text"] == EVIL


def test_verify_is_harmless(tmp_path: Path) -> None:
    line = {"id": f"a{CLEARS}", "split": "train", "group": f"g{CLEARS}", "text": "a", "image": f"{CLEARS}.png"}
    lines = [line, {**line, "id": "b", "split": "val"}]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (tmp_path / "dataset.json").write_text(json.dumps({"notes": [f"note {CLEARS}"]}))
    done = CliRunner().invoke(cli.app, ["data", "verify", "native", "--root", str(tmp_path)])
    assert done.exit_code == 2
    assert "stands in train and val" in done.output
    assert r"note \u001b" in done.output
    assert harmless(done.output)


def test_tables_show_brackets_and_are_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(tables, "Console", lambda **options: Console(file=stream, width=400))
    table = Table(EVIL, (EVIL, "x"), ((EVIL, 1.0), ("[/nothing]", 2.0)), EVIL)
    tables.print_evaluation(Evaluation({}, (table,), (), (EVIL,)))
    assert harmless(stream.getvalue())
    assert stream.getvalue().count("[/red]") == 5
    assert "[/nothing]" in stream.getvalue()
    assert stream.getvalue().startswith("warning: ")  # before any number


def test_the_console_and_the_log_of_a_run_are_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tracking.Track(tensorboard=False)
    with tracking.Tracker(tmp_path, settings, 1, 0) as tracker:
        tracker.say(f"left out: {EVIL}.png")
    for text in (capsys.readouterr().out, (tmp_path / "train.log").read_text()):
        assert harmless(text)
        assert r"left out: dog\u001b" in text


# --- reports


def evil_run(run: Path) -> Path:
    """Hostile words in every place, and hostile files in the gallery."""
    run.mkdir()
    words = EVIL.replace("\ud800", "")  # a configuration with half a character is refused
    (run / "config.yaml").write_text(yaml.safe_dump({"family": words, "data": {"reader": words}, words: words}))
    lines = [
        {"kind": "train", "step": step, "stage": words, "loss": float(step), words: 2.0, f"lr/{words}": 0.1}
        for step in (1, 2)
    ]
    lines.append(
        {"kind": "val", "step": 2, "metrics": {words: 1.0, f"{words}/a_{words}": 2.0, f"{words}/b_{words}": 2.0}}
    )
    lines.append({"kind": "event", "step": 2, "level": "alarm", "text": words})
    (run / "metrics.jsonl").write_text("".join(map(json_line, lines)))
    (run / "bomb.png").write_bytes(png(13_000, 13_000, b""))
    (run / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    (run / "nan.wav").write_bytes(wav(b"\0\0\xc0\x7f" * 800, kind=3, bits=32))
    (run / "slow.wav").write_bytes(wav(bytes(3200), rate=1))
    make_fifo(run / "pipe.png")
    names = [f"{words}.png", "bomb.png", "eps.png", "pipe.png", "/dev/zero", "a\0b", "x" * 300]
    hits = [Shown(words, image=name, right=True, score=0.5) for name in names]
    hits += [Shown(words, audio=name) for name in ("nan.wav", "slow.wav", "pipe.png", "a\0b", "x" * 300)]
    gallery = Gallery(words, (Card(Shown(words), tuple(hits)),), words)
    table = Table(words, (words, "x"), ((words, 1.0),), words)
    metrics = {words: 3.0, f"chance/{words}": 1.0, "wild": float("inf"), "chance/wild": float("nan")}
    write_result(run, Result("test", Evaluation(metrics, (table,), (gallery,), (words,)), "test", 2, words))
    return run


def test_a_hostile_run_is_reported(tmp_path: Path) -> None:
    run = evil_run(tmp_path / "run")
    with soon():
        path = write_report(run)
    for name in ("report.html", "report.md", "report.json"):
        assert harmless((run / name).read_text()), name
    text = path.read_text()
    assert text.count("</script>") == 1
    assert "<b>[/red]" not in text
    assert "&lt;/script&gt;&lt;b&gt;[/red]" in text
    for lost in ("bomb.png", "eps.png", "nan.wav", "slow.wav", "pipe.png", "/dev/zero"):
        assert f"gallery: {lost} cannot be read" in text
    caption = json.loads((run / "report.json").read_text())["evaluations"]["test"]["galleries"][0]["title"]
    assert caption == EVIL.replace("\ud800", "")


@pytest.mark.parametrize(
    "text",
    ['{"a":' * 100_000, '{"metrics": {"a": NaN}}', '{"metrics": {"a": "\\ud800"}}', '{"metrics": 1, "metrics": 2}'],
)
def test_a_hostile_evaluation_is_said_in_the_report(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text("family: toy\n")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "test.json").write_text(text)
    (tmp_path / "facts.json").write_text(text)
    (tmp_path / "metrics.jsonl").write_text(text + "\n")
    write_report(tmp_path)
    warned = json.loads((tmp_path / "report.json").read_text())["warnings"]
    assert [one.partition(":")[0] for one in warned] == ["facts.json", "metrics.jsonl", "test.json"]


# --- names and manifests


def test_names_that_are_not_unicode_are_refused_where_data_are_read(tmp_path: Path) -> None:
    root = tmp_path / "caf\udce9"
    try:
        root.mkdir()
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    (root / "manifest.jsonl").write_text('{"id": "1", "split": "train", "image": "a.png"}')
    with pytest.raises(DataError, match=r"caf\\xe9/a\.png': the name of a file or folder is not UTF-8; rename it"):
        readers.read("native", root)
    with (
        pytest.raises(ConfigError, match="signs in its name that cannot be written down"),
        rundir.locked(root / "run"),
    ):
        pass
    with pytest.raises(ConfigError, match="value cannot be read"):
        config.parse_overrides([f"data.root={root}"])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a":' * 100_000, "recursion limit"),
        ('{"id": "1", "split": "train", "text": "a", "text": "b"}', "key 'text' is given twice"),
        ('{"id": "1", "split": "train", "text": "a", "time": -Infinity}', "finite number"),
        ('{"id": "1", "split": "train", "text": "\\ud800"}', "hex escape"),
        (f'{{"id": "1", "split": "train", "text": "a", "time": {"9" * 100_000}}}', "time|number"),
        (f'{{"id": "1", "split": "train", "text": "{"x" * 100_000_000}"}}', "at most 1000000 characters"),
        (f'{{"id": "{"x" * 5000}", "split": "train", "text": "a"}}', "at most 4096 characters"),
        (f'{{"id": "1", "split": "train", "image": "{"../" * 2000}x"}}', "at most 4096 characters"),
        ('{"id": "1", "split": "train", "image": "a/../../x"}', "leaves the folder"),
    ],
)
def test_a_hostile_line_of_a_manifest_is_named(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"id": "0", "split": "train", "text": "a"}\n' + line)
    with pytest.raises(DataError, match=reason) as caught:
        readers.read("native", tmp_path)
    assert "line 2: " in str(caught.value)
    assert len(str(caught.value)) < 5000


def test_lines_of_a_log_that_lie_are_refused(tmp_path: Path) -> None:
    for step in ('true, "step": 1', "1e3", f"{10**400}", '"1"'):
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": {step}}}\n')
        with pytest.raises(CheckpointError, match=r"line 1 is damaged"):
            read_lines(tmp_path / "metrics.jsonl")


def test_a_caption_of_control_characters_is_data(tmp_path: Path) -> None:
    """It is read as it is; only what is shown of it is made harmless."""
    caption = EVIL.replace("\ud800", "")
    line = {"id": "1", "split": "train", "text": caption}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line))
    assert readers.read("native", tmp_path).items[0].text == caption
