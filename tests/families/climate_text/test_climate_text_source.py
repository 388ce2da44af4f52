"""From a tree of fields to batches: normalised fields, texts with masks, controls that exchange or withhold fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from field_trees import NAMES, SPREAD, USUAL, change, entry, make_tree
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sensorium import families
from sensorium.config import build
from sensorium.data.fields import places, tree
from sensorium.data.fields.channels import Normal, Scalers
from sensorium.data.fields.tree import Entry, read_entry
from sensorium.engine import settings
from sensorium.engine.contract import Host
from sensorium.engine.loader import Batches, TrainingRows
from sensorium.engine.order import Share, order_of, require_lengths
from sensorium.errors import ConfigError, DataError
from sensorium.families.climate_text.assumed import assumed
from sensorium.families.climate_text.controls import CONTROLS, others
from sensorium.families.climate_text.data import DataConfig, EvalSource, Inputs, TrainSource, open_part, texts
from sensorium.families.climate_text.normals import measured
from sensorium.families.climate_text.prompts import Texts
from sensorium.families.climate_text.sources import SortableSource

FAMILY = families.load("climate_text")
SCALERS = Scalers(
    Normal(tuple(NAMES), tuple(USUAL.tolist()), tuple(SPREAD.tolist())),
    Normal(("FRACI", "FRLAND", "FROCEAN", "PHIS"), (0.5,) * 4, (0.25,) * 4),
    Normal(tuple(NAMES), (1.0, 2.0, 3.0), (2.0, 2.0, 2.0)),
)
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
CHAT += "{% if add_generation_prompt %}<answer>{% endif %}"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """A token a byte, and an end."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=letters | {"<end>": 256}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "data", train=6, val=4)


def inputs(tokenizer: PreTrainedTokenizerBase, dropout: float = 0.0, **data: Any) -> Inputs:
    config = build(DataConfig, data)
    return Inputs(config, texts(tokenizer, config), SCALERS, dropout)


def train(root: Path, tokenizer: PreTrainedTokenizerBase, dropout: float = 0.0, **data: Any) -> TrainSource:
    part = open_part(root / "train", build(DataConfig, data))
    return TrainSource(part, inputs(tokenizer, dropout, **data))


def test_a_batch_is_what_the_encoder_and_the_language_model_take(
    root: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    static, usual = torch.rand(4, 8, 8), torch.rand(3, 8, 8)
    torch.save(static, root / "train" / "s.pt")
    torch.save(usual, root / "train" / "c.pt")
    change(root, "train", 0, lambda one: one.update(static_file="s.pt", climatology_file="c.pt", lead_time=12.0))
    source = train(root, tokenizer)
    batch = source.collate([source.example(number, 7) for number in (0, 3)])
    raw = tree.load(root / "train" / "climate_00001.pt")
    assert batch["field"].dtype == torch.float32
    assert batch["field"].shape == (2, 2, 3, 8, 8)
    torch.testing.assert_close(batch["field"][0], (raw - USUAL[:, None, None]) / SPREAD[:, None, None])
    torch.testing.assert_close(batch["static"][0], (static - 0.5) / 0.25)
    torch.testing.assert_close(batch["climatology"][0], (usual - torch.tensor([1.0, 2, 3])[:, None, None]) / 2)
    assert batch["static_given"].tolist() == batch["climatology_given"].tolist() == [True, False]
    assert not batch["static"][1].any()
    assert not batch["climatology"][1].any()
    assert batch["lat"].shape == batch["lon"].shape == (2, 8)
    assert batch["lat"][0].tolist() == list(range(10, 18))
    assert batch["day_hour"][0].tolist() == pytest.approx(
        places.time_code(places.parse_time(entry(0)["time"][1])).tolist()
    )
    assert (batch["input_time"].tolist(), batch["lead_time"].tolist()) == ([6.0, 6.0], [12.0, 0.0])
    assert batch["field_given"].tolist() == [True, True]
    for row, number in enumerate((0, 3)):
        kept, target = batch["attention_mask"][row], batch["target_mask"][row]
        said = entry(number)
        assert tokenizer.decode(batch["input_ids"][row][kept]) == f"{said['text']}\n{said['target']}<end>"
        assert tokenizer.decode(batch["input_ids"][row][target]) == f"{said['target']}<end>"
        assert not (target & ~kept).any()
        assert kept.long().diff().le(0).all()  # padding on the right
    assert {key: value.dtype for key, value in batch.items() if value.dtype == torch.float64} == {}


def test_the_end_is_told_apart_from_padding(root: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Without a token of its own, padding is the end token again."""
    change(root, "train", 1, lambda one: one.update(target="A much longer answer than the others have."))
    source = train(root, tokenizer)
    batch = source.collate([source.example(number, 0) for number in (0, 1)])
    end = tokenizer.eos_token_id
    assert ((batch["input_ids"] == end) & batch["target_mask"]).sum(1).tolist() == [1, 1]
    assert ((batch["input_ids"] == end) & ~batch["attention_mask"]).any()


def test_large_numbers_stay_exact_and_flat_channels_finite(root: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    raw = torch.zeros(2, 3, 8, 8)
    raw[:, 1] = 101_325
    torch.save(raw, root / "train" / "climate_00001.pt")
    source = train(root, tokenizer)
    flat = Scalers(Normal(tuple(NAMES), (0.0, 101_324.0, 0.0), (1.0, 0.0, 1.0)))
    source = TrainSource(source.part, replace(source.inputs, scalers=flat))
    field = source.example(0, 0)["field"]
    assert field[:, 1].unique().tolist() == pytest.approx([1e4])  # 1 Pa / the least deviation
    assert field.half().isfinite().all()
    assert not raw.half().isfinite().all()  # what happens without


def test_the_climate_is_withheld_by_the_seed_alone(root: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source = train(root, tokenizer, dropout=0.3)
    given = [source.example(1, seed)["field_given"] for seed in range(200)]
    assert given[:20] == [source.example(1, seed)["field_given"] for seed in range(20)]
    assert np.mean(given) == pytest.approx(0.7, abs=0.13)  # four deviations of 200 draws
    assert all(train(root, tokenizer).example(1, seed)["field_given"] for seed in range(20))


def test_channels_are_taken_by_name(root: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    wanted = list(reversed(NAMES))
    plain, turned = train(root, tokenizer).example(0, 0), train(root, tokenizer, variables=wanted).example(0, 0)
    assert torch.equal(plain["field"], turned["field"].flip(1))
    assert not torch.equal(plain["field"], turned["field"])


def test_a_missing_channel_is_refused_or_neutral(root: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    wanted = [*NAMES, "V10M"]
    with pytest.raises(DataError, match=r"climate_00001\.pt: lacks the channels V10M; set data\.fill_missing"):
        train(root, tokenizer, variables=wanted).example(0, 0)
    source = train(root, tokenizer, variables=wanted, fill_missing="mean")
    assert assumed(source.part) == ("channels that files lack, taken as their mean: V10M",)
    known = Normal(tuple(wanted), (*SCALERS.field.mean, 9.0), (*SCALERS.field.std, 3.0))
    for scalers in (SCALERS, replace(SCALERS, field=known)):  # its mean need not be known
        field = TrainSource(source.part, replace(source.inputs, scalers=scalers)).example(0, 0)["field"]
        assert not field[:, 3].any()
        assert torch.equal(field[:, :3], train(root, tokenizer).example(0, 0)["field"])
    lacking = replace(SCALERS, field=Normal(("U10M",), (0.0,), (1.0,)))
    unknown = TrainSource(source.part, replace(source.inputs, scalers=lacking))
    with pytest.raises(DataError, match="no mean and standard deviation for T2M"):
        unknown.example(0, 0)


def test_bare_tensors_get_assumed_places_unless_strict(root: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    change(root, "train", 0, lambda one: [one.pop(key) for key in ("lat", "lon", "time")])
    source = train(root, tokenizer)
    (note,) = assumed(source.part)
    assert note.startswith("positions assumed: 1 of 6 entries")
    example = source.example(0, 0)
    assert example["day_hour"].tolist() == [0, 0, 0, 0]
    assert example["lat"].mean() == 0
    with pytest.raises(DataError, match=r"climate_00001\.pt: has no lat and lon"):
        train(root, tokenizer, strict_inputs=True).example(0, 0)


@pytest.mark.parametrize(("policy", "times"), [("exact", 2), ("repeat", 1), ("pairs", 4)])
def test_the_policy_of_times(root: Path, tokenizer: PreTrainedTokenizerBase, policy: str, times: int) -> None:
    for count in (1, 2, 4):
        torch.save(torch.randn(count, 3, 8, 8), root / "train" / "climate_00001.pt")
        change(root, "train", 0, lambda one: one.pop("time", None))
        source = train(root, tokenizer, time_policy=policy)
        if count == times:
            shape = source.example(0, 0)["field"].shape
            assert shape[0] == (2 if policy == "repeat" else times)
        else:
            with pytest.raises(DataError, match=rf"climate_00001\.pt: {count} times; the policy '{policy}' wants"):
                source.example(0, 0)


def test_texts_that_are_too_long_are_refused_or_cut(root: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    change(root, "train", 0, lambda one: one.update(target="word " * 100))
    with pytest.raises(DataError, match=r"index\.json: entry 0: 5\d\d tokens, .*data\.max_length"):
        train(root, tokenizer, max_length=100).example(0, 0)
    cut = train(root, tokenizer, max_length=100, too_long="truncate").example(0, 0)
    assert len(cut["prompt_ids"]) + len(cut["target_ids"]) == 100
    change(root, "train", 0, lambda one: one.update(text="word " * 100))
    with pytest.raises(DataError, match="too_long to truncate"):
        train(root, tokenizer, max_length=100, too_long="truncate").example(0, 0)


def test_a_run_does_not_begin_with_a_text_that_is_too_long(root: Path) -> None:
    """Also where it is the last one of validation. Twin: cut, as asked for, it begins."""
    change(root, "val", 3, lambda one: one.update(target="word " * 300))
    data = {"demo": None, "train_path": str(root / "train"), "val_path": str(root / "val")}
    config = settings.resolve(FAMILY, "tiny", {"data": data})
    with pytest.raises(DataError, match=r"val/index\.json: entry 3: \d{3,} tokens"):
        FAMILY.sources(config, Host())
    FAMILY.sources(settings.resolve(FAMILY, "tiny", {"data": data | {"too_long": "truncate"}}), Host())


def test_the_form_of_a_conversation(root: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match="the tokenizer has no chat template"):
        train(root, tokenizer, prompt_style="chat")
    talking = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<end>", chat_template=CHAT
    )
    example = train(root, talking, prompt_style="chat").example(0, 0)
    assert tokenizer.decode(example["prompt_ids"]) == f"<user>{entry(0)['text']}<answer>"


def test_statistics_of_a_tree_without_any(root: Path) -> None:
    part = open_part(root / "train", build(DataConfig, {}))
    fields = torch.cat([tree.load(root / "train" / f"climate_0000{n}.pt") for n in range(1, 7)]).double()
    found = measured(part)
    assert found.field.names == tuple(NAMES)
    assert found.field.mean == pytest.approx(fields.mean((0, 2, 3)).tolist(), rel=1e-6)
    assert found.field.std == pytest.approx(fields.std((0, 2, 3), correction=0).tolist(), rel=1e-6)
    assert found.static == Normal((), (), ())


def test_fields_of_different_shapes_do_not_meet(root: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    torch.save(torch.randn(2, 3, 10, 10), root / "train" / "climate_00002.pt")
    source = train(root, tokenizer)
    with pytest.raises(DataError, match="fields of different shapes in one batch"):
        source.collate([source.example(number, 0) for number in (0, 1)])


@pytest.mark.parametrize(
    "edit",
    [
        lambda root: change(root, "train", 0, lambda one: one.update(target="Other.")),
        lambda root: change(root, "train", 5, lambda one: one.update(lat=[0.0, 7.0])),
        lambda root: torch.save(torch.randn(2, 3, 12, 8), root / "train" / "climate_00003.pt"),
        lambda root: (root / "channels.json").write_text('{"channels": ["A", "B", "C"]}'),
    ],
)
def test_the_fingerprint_follows_the_data(
    root: Path, tokenizer: PreTrainedTokenizerBase, edit: Callable[[Path], object]
) -> None:
    before = train(root, tokenizer).fingerprint
    assert train(root, tokenizer).fingerprint == before
    edit(root)
    assert train(root, tokenizer).fingerprint != before


def test_an_own_loader_gives_the_field(root: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source = train(root, tokenizer)
    part = replace(source.part, load=lambda path: tree.load(path) + SPREAD[:, None, None])
    own = TrainSource(part, source.inputs)
    torch.testing.assert_close(own.example(0, 0)["field"], source.example(0, 0)["field"] + 1, atol=1e-4, rtol=0)


# --- controls ---


def asked(rows: Sequence[tuple[str, str, str]]) -> list[Entry]:
    """Entries of (question, place, file)."""
    return [
        read_entry({"climate_file": file, "text": "?", "target": "!", "location": place, "facts": {"asked": kind}})
        for kind, place, file in rows
    ]


def test_nobody_keeps_a_field_and_like_goes_to_like() -> None:
    kinds, spots = ("sign", "location", "trend"), ("Japan", "Siberia")
    rows = [(kind, spot, f"{spot}{n}.pt") for n in range(10) for kind in kinds for spot in spots]
    entries = asked(rows)
    for seed in range(20):
        partner = others(entries, seed)
        assert sorted(partner) == list(range(len(entries)))
        for number, other in enumerate(partner):
            assert rows[number][:2] == rows[int(other)][:2]
            assert rows[number][2] != rows[int(other)][2]
    assert not np.array_equal(others(entries, 0), others(entries, 1))
    assert np.array_equal(others(entries, 0), others(entries, 0))


def test_facts_do_not_choose_the_partner() -> None:
    """So a perfect reader falls to chance: partners share an answer as often as any two do."""
    entries = asked([("sign", "Japan", f"{n}.pt") for n in range(400)])
    answers = np.random.default_rng(0).integers(2, size=400)
    same = np.mean([np.mean(answers[others(entries, seed)] == answers) for seed in range(10)])
    assert same == pytest.approx(0.5, abs=0.04)  # five deviations of 4000 draws


def test_what_stands_alone_goes_further_and_still_finds_another() -> None:
    rows = [
        ("sign", "Japan", "a.pt"),
        ("sign", "Siberia", "b.pt"),
        ("trend", "Japan", "a.pt"),
        ("size", "Japan", "c.pt"),
    ]
    entries = asked(rows)
    for seed in range(10):
        partner = others(entries, seed)
        assert all(rows[number][2] != rows[int(other)][2] for number, other in enumerate(partner))
        assert partner[:2].tolist() == [1, 0]
    with pytest.raises(DataError, match="have the same field"):
        others(asked([("sign", "Japan", "a.pt"), ("trend", "Japan", "a.pt")]), 0)


def test_free_text_is_exchanged_between_blocks_of_time() -> None:
    entries = [
        read_entry({"climate_file": f"{n}.pt", "text": "?", "target": "!", "group": f"day {n // 3}"}) for n in range(12)
    ]
    for seed in range(10):
        for number, other in enumerate(others(entries, seed)):
            assert entries[number].group != entries[int(other)].group


def test_an_evaluation_shows_every_entry_under_every_control(root: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    part = open_part(root / "val", build(DataConfig, {}))
    source = EvalSource(part, inputs(tokenizer))
    assert (source.rows, len(source)) == (4, 12)
    batch = source.collate([source.example(index, 0) for index in range(12)])
    assert batch["row"].tolist() == [0, 1, 2, 3] * 3
    assert [CONTROLS[one] for one in batch["control"].tolist()] == ["own"] * 4 + ["shuffled"] * 4 + ["absent"] * 4
    assert batch["field_given"].tolist() == [True] * 8 + [False] * 4
    assert torch.equal(batch["input_ids"][:4], batch["input_ids"][4:8])
    for row in range(4):
        own, shuffled = batch["field"][row], batch["field"][4 + row]
        assert not torch.equal(own, shuffled)
        assert torch.equal(shuffled, batch["field"][int(source.partner[row])])
        assert torch.equal(batch["day_hour"][4 + row], batch["day_hour"][int(source.partner[row])])
    alone = EvalSource(part, inputs(tokenizer), controls=("own",))
    assert len(alone) == 4


def test_the_engine_can_order_it(root: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    order = order_of(train(root, tokenizer), 0, 3)
    assert sorted(order.sample(position) for position in range(6)) == list(range(6))


def differing(root: Path) -> Path:
    """Six entries: questions of two lengths, answers of three, one of them told twice."""
    for number, words in enumerate((1, 40, 1, 8, 40, 1)):
        change(root, "train", number, lambda one, words=words: one.update(text="Why?" * words, target="x" * words))
    return root


def sortable(root: Path, tokenizer: PreTrainedTokenizerBase, **data: Any) -> SortableSource:
    found = train(differing(root), tokenizer, **data)
    return SortableSource(found.part, found.inputs)


@pytest.mark.parametrize("data", [{}, {"max_length": 180, "too_long": "truncate"}])
def test_a_length_is_that_of_the_tokens_in_a_batch(
    root: Path, tokenizer: PreTrainedTokenizerBase, data: Mapping[str, Any]
) -> None:
    source = sortable(root, tokenizer, **data)
    batch = source.collate([source.example(number, 0) for number in range(6)])
    lengths = [source.length(number) for number in range(6)]
    assert lengths == batch["attention_mask"].sum(dim=1).tolist()
    assert (len(set(lengths)), max(lengths)) == (3, data.get("max_length", 202))


def test_lengths_are_counted_once_and_without_a_field(
    root: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, asked_for = sortable(root, tokenizer), []
    for path in (root / "train").glob("*.pt"):
        path.unlink()
    count = Texts.count
    monkeypatch.setattr(Texts, "count", lambda *given: asked_for.append(given[1:]) or count(*given))
    assert not asked_for
    for _ in range(2):
        assert [source.length(number) for number in range(6)] == [7, 202, 7, 42, 202, 7]
    assert asked_for == [("Why?", "x"), ("Why?" * 40, "x" * 40), ("Why?" * 8, "x" * 8)]


@pytest.mark.parametrize("workers", [0, 2])
def test_sorted_batches_have_less_padding(root: Path, tokenizer: PreTrainedTokenizerBase, workers: int) -> None:
    source, share = sortable(root, tokenizer), Share(3, 1, 1)

    def padding(window: int) -> int:
        rows = TrainingRows(order_of(source, 0, 3, window), share, 0, 0, 2)
        batches = list(Batches(source, rows, settings.Loader(workers=workers)))
        assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == list(range(6))
        return sum(int((~batch["attention_mask"]).sum()) for batch in batches)

    assert (padding(0), padding(2)) == (6 * 202 - 467, 3 * 7 + 3 * 202 - 467)  # 467 tokens are text


def test_rows_that_are_each_others_negatives_have_no_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path))
    config = settings.resolve(FAMILY, "tiny", {"model": {"contrastive_weight": 0.5}, "loader": {"sort_window": 2}})
    with pytest.raises(ConfigError, match=r"sort_window is 2, but the training samples of this run \(climate_text\)"):
        require_lengths(FAMILY.sources(config, Host()), config)
    plain = settings.resolve(FAMILY, "tiny", {"loader": {"sort_window": 2}})
    require_lengths(FAMILY.sources(plain, Host()), plain)


def test_settings_are_strict() -> None:
    with pytest.raises(ConfigError, match="time_policy"):
        build(DataConfig, {"time_policy": "twice"})
    defaults: Mapping[str, Any] = build(DataConfig, {}).model_dump()
    assert (defaults["max_length"], defaults["too_long"]) == (512, "raise")
