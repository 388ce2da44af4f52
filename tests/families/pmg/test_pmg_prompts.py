"""The question about a history, cut to fit."""

from __future__ import annotations

import pytest

from sensorium.errors import DataError
from sensorium.families.pmg.language import open_tokenizer
from sensorium.families.pmg.prompts import Prompts, negative_prompt_of, preface, template_of
from sensorium.families.pmg.tiny import LLM, tiny_folder

LONG = ["a very long caption " * 40, "a short one", "another caption of some length " * 20]


def prompts(longest: int = 598) -> Prompts:
    return Prompts(open_tokenizer(tiny_folder(LLM), "tiny"), template_of("FLICKR", None), longest)


def test_the_question_holds_the_captions_in_order() -> None:
    found = prompts()
    ids, cut = found.encode(["a red circle", "a blue star"])
    assert not cut
    assert ids[0] == found.tokenizer.bos_token_id
    text = found.tokenizer.decode(ids)
    assert "liked the following images: 1. a red circle 2. a blue star. Describe this person's visual taste." in text
    assert [template_of(name, None).split()[4] for name in ("FLICKR", "POG", "SER")] == ["the"] * 3
    assert "stickers" in template_of("ser", None)
    assert "bought" in template_of("POG", None)
    assert template_of("POG", "{captions}!") == "{captions}!"


def test_captions_beyond_the_cap_are_cut_evenly() -> None:
    found = prompts(80)
    ids, cut = found.encode(LONG)
    assert cut
    assert 70 < len(ids) <= 80
    text = found.tokenizer.decode(ids)
    assert "2. a short one 3." in text
    assert text.rstrip().endswith("Describe this person's visual taste.\nAssistant:")
    with pytest.raises(DataError, match=r"has \d+ tokens without their captions, 20 are allowed"):
        prompts(20).encode(LONG)


def test_what_pictures_shall_not_be() -> None:
    assert negative_prompt_of("POG", None).endswith("watermark, face, portrait")
    assert negative_prompt_of("SER", None).endswith("photorealistic, 3d, realistic")
    assert negative_prompt_of("FLICKR", None).endswith("anatomy, watermark")
    assert negative_prompt_of("FLICKR", "") == ""


def test_the_preface_has_any_length() -> None:
    tokenizer = prompts().tokenizer
    assert preface(tokenizer, 0) == []
    assert preface(tokenizer, 128)[:3] == preface(tokenizer, 3)
    assert len(preface(tokenizer, 128)) == 128
