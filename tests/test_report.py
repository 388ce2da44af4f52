"""The report: complete, deterministic, self-contained, escaped, and whole although pieces are missing."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from run_folder import STEPS, draw_picture, judged, make_run

from sensorium.engine.contract import Card, Evaluation, Gallery, Shown, Table
from sensorium.engine.files import json_line
from sensorium.engine.report import write_report
from sensorium.engine.report_curves import Chart, Line, draw, smooth, ticks
from sensorium.engine.report_data import load, parts_of, shown_bytes, shown_number, shown_seconds
from sensorium.engine.report_media import read_picture, read_sound
from sensorium.engine.results import Result, evaluation_from_json, evaluation_to_json, read_result, write_result
from sensorium.errors import CheckpointError


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("runs") / "emoji-demo")
    write_report(run)
    return run


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(run: Path) -> Page:
    return Page((run / "report.html").read_text())


def test_page_holds_every_chapter(finished: Path) -> None:
    page = page_of(finished)
    assert [a["id"] for a in page.all("section") if "id" in a] == [
        "results",
        "gallery",
        "curves",
        "configuration",
        "environment",
        "events",
    ]
    links = [a["href"] for a in page.all("a")]
    assert links == [f"#{a['id']}" for a in page.all("section") if "id" in a]
    for text in (
        "thinking", "demo", "twemoji", "171.8", "21 times chance (8.00)", "34.4 M frozen", "2.13 GB",
        "11.8 M", "2 min 56 s", "2025-11-21 05:40 UTC", "optim.lr", "resumed after step 320", "espeak-ng",
        "linear heads",
    ):  # fmt: skip
        assert text in page.words, text


def test_warnings_stand_on_top(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    head = text[text.index("<header>") : text.index("</header>")]
    assert 'role="alert"' in head
    assert "step 500: not learning: at chance" in head
    assert "test: image-audio: 3 recordings are silent" in head
    assert "2 warnings" in head


def test_no_warning_no_box(tmp_path: Path) -> None:
    run = make_run(tmp_path / "calm", alarm=False)
    write_result(run, Result("test", judged(0.85), "test", 560, None))
    write_report(run)
    assert 'role="alert"' not in (run / "report.html").read_text()


def test_nothing_is_fetched(finished: Path) -> None:
    """Every address on the page is inline or points into it, and the policy forbids anything else."""
    page = page_of(finished)
    addresses = [a[k] or "" for _, a in page.tags for k in ("src", "href", "srcset", "poster", "data") if k in a]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    text = (finished / "report.html").read_text()
    assert not re.findall(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; media-src data:")


def test_pictures_and_sounds_are_inline_and_described(finished: Path) -> None:
    page = page_of(finished)
    pictures, sounds = page.all("img"), page.all("audio")
    assert len(pictures) == 8 * 5 * 3 + 8  # hits of three galleries, queries of one
    assert all((p["src"] or "").startswith("data:image/webp;base64,") and p["alt"] for p in pictures)
    assert max(int(p[side] or 0) for p in pictures for side in ("width", "height")) == 160
    assert len(sounds) == 8 * 5 + 8
    assert "Found by linear heads" in page.words
    assert all((s["src"] or "").startswith("data:audio/mpeg;base64,") for s in sounds)
    assert all("aria-label" in a for a in page.all("button"))
    assert (finished / "report.html").stat().st_size < 2_000_000


def test_drawings_of_an_evaluation_are_large(tmp_path: Path) -> None:
    run = make_run(tmp_path / "drawn", alarm=False)
    data = io.BytesIO()
    Image.new("RGB", (3000, 1500), "red").save(data, "PNG")
    for large in (True, False):
        gallery = Gallery("maps", (Card(Shown("July", image="map.png"), ()),), large=large)
        evaluation = replace(judged(0.85, (gallery,)), pictures={"map.png": data.getvalue()})
        write_result(run, Result("test", evaluation, "test", 560, None))
        write_report(run)
        widths = [picture["width"] for picture in page_of(run).all("img") if picture["alt"] == "picture: July"]
        assert widths == ["1280" if large else "160"]


def test_right_and_wrong_do_not_rest_on_colour(finished: Path) -> None:
    words = page_of(finished).words
    assert "✓ right" in words
    assert "✗ wrong" in words
    assert "✗ not in the first 5" in words
    assert re.search(r"\d of 8 right in first place", words)


def test_same_folder_same_bytes(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a" / "run")
    shutil.copytree(one, tmp_path / "b" / "run")
    names = ("report.html", "report.md", "report.json")
    write_report(one)
    first = [(one / name).read_bytes() for name in names]
    write_report(one)  # the reports themselves are no input
    write_report(tmp_path / "b" / "run")
    assert [(one / name).read_bytes() for name in names] == first
    assert [(tmp_path / "b" / "run" / name).read_bytes() for name in names] == first
    with (one / "metrics.jsonl").open("a") as file:  # negative twin: one more event changes all three
        file.write(json_line({"kind": "event", "step": 640, "text": "done"}))
    write_report(one)
    assert all((one / name).read_bytes() != old for name, old in zip(names, first, strict=True))


PIECES = ("metrics.jsonl", "times.jsonl", "environment.json", "facts.json", "summary.json", "evaluation", "gallery")
PIECES += ("passes.jsonl",)


@pytest.mark.parametrize("missing", [*PIECES, "all"])
def test_missing_pieces_are_left_out(finished: Path, tmp_path: Path, missing: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for piece in PIECES if missing == "all" else (missing,):
        shutil.rmtree(run / piece) if (run / piece).is_dir() else (run / piece).unlink()
    write_report(run)
    page = page_of(run)
    assert "thinking" in page.words
    chapters = {a["id"] for a in page.all("section") if "id" in a}
    if missing == "all":
        assert chapters == {"configuration"}
        assert "no validation result" in page.words
    if missing == "summary.json":
        assert "not finished" in page.words
    if missing == "gallery":
        assert "picture cannot be read: 0.png" in page.words
        assert "gallery: gallery/0.png cannot be read" in page.words


def test_damaged_pieces_are_said(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "facts.json").write_text("{")
    (run / "evaluation/linear_heads.json").write_text('{"metrics": {"R@1": "many"}}')
    (run / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": 2.0}\nnoise\n{"step": 2}\n')
    write_report(run)
    warned = json.loads((run / "report.json").read_text())["warnings"]
    assert any(text.startswith("facts.json: cannot be read") for text in warned)
    assert any(text.startswith("linear_heads.json: not an evaluation: metrics.R@1") for text in warned)
    assert any(text.startswith("metrics.jsonl: line 2 is damaged") for text in warned)


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        write_report(tmp_path)


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)> \" ' & | `x`"


def evil_run(run: Path) -> Path:
    """Hostile text wherever text comes from outside."""
    run.mkdir()
    quoted = json.dumps(EVIL)
    sections = f"data: {{reader: {quoted}}}\nmodel: {{{quoted}: {quoted}}}\ncheckpoint: {{best_metric: {quoted}}}\n"
    config = f"family: {quoted}\npreset: {quoted}\n{sections}"
    (run / "config.yaml").write_text(config)
    lines = [
        {"kind": "train", "step": s, "stage": EVIL + str(s), "loss": 1.0 * s, EVIL: 2.0, "lr/" + EVIL: 0.1}
        for s in (1, 2)
    ]
    lines.append({"kind": "val", "step": 2, "metrics": {EVIL: 1.0, f"{EVIL}/a_{EVIL}": 2.0, f"{EVIL}/b_{EVIL}": 2.0}})
    lines += [{"kind": "event", "step": 2, "level": level, "text": EVIL} for level in ("alarm", EVIL)]
    (run / "metrics.jsonl").write_text("".join(map(json_line, lines)))
    for name in ("environment", "facts"):
        (run / f"{name}.json").write_text(json.dumps({EVIL: EVIL, "started": EVIL, "gpu": EVIL}))
    best = {"metric": EVIL, "value": 3.0, "step": 2}
    content = {"seconds": {EVIL: 3.0}, "best": best, "notes": [EVIL]}
    (run / "summary.json").write_text(json.dumps(content))
    hit = Shown(EVIL, image=EVIL, audio=EVIL, right=True, score=0.5)
    evaluation = Evaluation(
        {EVIL: 3.0, f"chance/{EVIL}": 1.0},
        (Table(EVIL, (EVIL, "x"), ((EVIL, 1.0),), EVIL),),
        (Gallery(EVIL, (Card(Shown(EVIL), (hit,)),), EVIL),),
        (EVIL,),
    )
    write_result(run, Result("test", evaluation, "test", 2, EVIL))
    return run


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    run = evil_run(tmp_path / "<b>evil")
    write_report(run)
    page = page_of(run)
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<b>evil" in page.words
    assert page.words.count("alert(1)") > 20  # it is all there, as text
    plain_text = (run / "report.md").read_text()
    assert "<script" not in plain_text
    assert "<img" not in plain_text


def test_the_parser_notices_markup() -> None:
    """Negative twin: the check above sees a script that is not escaped."""
    page = Page(f"<p>{EVIL}</p>")
    assert page.all("script")
    assert page.all("img")


def test_markdown_and_json_say_the_same(finished: Path) -> None:
    content = json.loads((finished / "report.json").read_text())
    assert content["best"] == {"metric": "R-Sum", "value": 171.8, "chance": 8.0, "step": 560}
    assert content["evaluations"]["test"]["metrics"]["image-text/i2t_R@1"] == judged(0.85).metrics["image-text/i2t_R@1"]
    assert content["last"]["val/R-Sum"] == judged(0.9).metrics["R-Sum"]
    assert content["resumed"] == [320]
    text = (finished / "report.md").read_text()
    assert "| best | R-Sum 171.8 (chance 8.00; validation, step 560) |" in text
    assert "| metric | chance | test | linear_heads |" in text
    assert "- **step 500: not learning: at chance**" in text
    assert "| optim.lr | 0.001 |" in text


def test_evaluation_survives_json(tmp_path: Path) -> None:
    table = Table("t", ("name", "whole", "real", "none"), (("a", 1, 1.5, None),), "note")
    hit = Shown("hit", image="a.png", right=False, score=0.25)
    evaluation = Evaluation({"R@1": 1 / 3}, (table,), (Gallery("g", (Card(Shown("q"), (hit,)),)),), ("careful",))
    assert evaluation_from_json(json.loads(json.dumps(evaluation_to_json(evaluation)))) == evaluation
    result = Result("val", evaluation, "val", 3, "step_00000003")
    assert read_result(write_result(tmp_path, result)) == result
    detailed = Result("val", replace(evaluation, details={"trials": [[1, "a"]]}), "val", 3, "step_00000003")
    assert read_result(write_result(tmp_path, detailed)) == result
    assert json.loads((tmp_path / "evaluation/val/trials.json").read_text()) == [[1, "a"]]
    drawn = replace(evaluation, pictures={"a.png": b"bytes"})
    found = read_result(write_result(tmp_path, replace(result, evaluation=drawn))).evaluation
    assert found.galleries[0].cards[0].found[0].image == "evaluation/val/a.png"
    assert (tmp_path / "evaluation/val/a.png").read_bytes() == b"bytes"
    wide = Evaluation({"a": float("inf"), "b": np.float32(0.5)}, (Table("t", ("n",), ((np.int64(3),),)),))
    assert evaluation_from_json(evaluation_to_json(wide)) == wide


def test_wrong_evaluation_names_the_field(tmp_path: Path) -> None:
    content: Mapping[str, Any] = {"metrics": {}, "tables": [{"title": "t", "columns": ["a"], "rows": "none"}]}
    with pytest.raises(CheckpointError, match=r"tables\.0\.rows"):
        evaluation_from_json(content)


def test_ragged_table_is_refused() -> None:
    content = {"metrics": {}, "tables": [{"title": "t", "columns": ["a", "b"], "rows": [[1, 2], [3]]}]}
    with pytest.raises(CheckpointError, match="table 't': a row of 1 for 2 columns"):
        evaluation_from_json(content)


def test_unfinished_run_takes_its_best_from_the_curve(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "summary.json").unlink()
    write_report(run)
    best = json.loads((run / "report.json").read_text())["best"]
    assert (best["metric"], best["step"]) == ("R-Sum", STEPS)
    assert load(run).stages == ((1, "align"), (161, "train"))


def test_curve_breaks_at_nan_and_keeps_spikes() -> None:
    points = [(step, 1.0 + step % 2) for step in range(2000)]
    points[700] = (700, 99.0)
    points[900] = (900, math.nan)
    figure = draw(Chart("loss", (Line("loss", points),)))
    assert "99.0" in figure
    assert figure.count('<path class="s0"') == 1  # a lone NaN among many values falls out with the thinning
    few = draw(Chart("loss", (Line("loss", [(1, 1.0), (2, math.nan), (3, 2.0), (4, 1.0)]),)))
    assert few.count('<path class="s0"') == 2
    assert draw(Chart("loss", (Line("loss", [(1, math.nan)]),))) == ""
    assert "nan" not in (figure + few).lower()


def test_constant_and_single_values_can_be_drawn() -> None:
    for points in ([(5, 0.0)], [(1, 3.0), (2, 3.0)], [(1, -1e-9), (10, 1e9)]):
        figure = draw(Chart("x", (Line("x", points, dots=True),)))
        assert figure.count("<circle") == len(points)


def test_absurd_values_are_left_out_as_nan_is() -> None:
    """The differences between such values are infinite."""
    figure = draw(Chart("x", (Line("x", [(1, 1.0), (2, 1.7e308), (3, -1.7e308), (4, 2.0)], dots=True),)))
    assert figure.count("<circle") == 2
    assert draw(Chart("x", (Line("x", [(1, 1.7e308)]),))) == ""


def test_smooth_follows_a_constant_and_skips_nan() -> None:
    assert [value for _, value in smooth([(i, 2.0) for i in range(100)])[0]] == pytest.approx([2.0] * 100)
    assert smooth([(1, math.nan), (2, 4.0)])[0] == [(2, 4.0)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.12, 0.49, [0.2, 0.3, 0.4]),
        (1, 640, [200, 400, 600]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 6 if high == 10 else 4) == pytest.approx(expected)


def test_numbers_as_people_read_them() -> None:
    shown = [shown_number(x) for x in (None, 3, 1234.5, 41.23, 0.0526, 0.0, float("nan"), "text", 12345678)]
    assert shown == ["n/a", "3", "1,234.5", "41.2", "0.0526", "0.00", "nan", "text", "12,345,678"]
    assert [shown_seconds(x) for x in (0.42, 42, 185, 7800)] == ["0.4 s", "42 s", "3 min 05 s", "2 h 10 min"]
    assert [shown_bytes(x) for x in (12, 2.134e9, 5e6)] == ["12 B", "2.13 GB", "5 MB"]
    assert parts_of("image-text/i2t_R@1") == ("image-text/i2t", "R@1")
    assert parts_of("text-image/R@1") == ("text-image", "R@1")
    assert parts_of("R-Sum") == ("", "R-Sum")


def test_media_are_small_and_on_white(tmp_path: Path) -> None:
    draw_picture(tmp_path / "a.png", "red circle")
    picture = read_picture(tmp_path / "a.png")
    assert picture is not None
    assert (picture.width, picture.height) == (160, 160)
    rate = 44100
    noise = np.random.default_rng(0).normal(0, 0.1, (30 * rate, 2))
    soundfile.write(tmp_path / "a.wav", noise, rate)
    sound = read_sound(tmp_path / "a.wav")
    assert sound is not None
    assert sound.seconds == 30.0
    assert len(sound.uri) < 10 * 6_000 * 4 / 3  # ten seconds at 48 kbit/s, in base64
    assert len(sound.peaks) == 48
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    assert read_picture(tmp_path / "bad.png") is None
    assert read_sound(tmp_path / "bad.wav") is None


def test_a_long_value_is_cut_on_the_page_alone(tmp_path: Path) -> None:
    finished = make_run(tmp_path / "run")
    facts = {"vocabulary": {"words": [f"word{n}" for n in range(3000)]}, "short": "s" * 300}
    (finished / "facts.json").write_text(json.dumps(facts))
    write_report(finished)
    page = (finished / "report.html").read_text()
    assert "word1" in page
    assert "characters)" in page
    assert "word2999" not in page
    assert "s" * 300 in page
    assert json.loads((finished / "report.json").read_text())["facts"] == facts


def test_every_look_at_the_test_split_is_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "looked", alarm=False)  # which has looked once
    result = Result("test", judged(0.85), "test", 560, "step_00000560")
    for looks, said in ((1, False), (2, True)):
        write_report(run)
        assert ("The test split was judged 2 times" in page_of(run).words) is said
        assert load(run).passes == looks
        write_result(run, result)
        write_result(run, replace(result, name="val", split="val"))
