"""The best of several pictures: z by hand, cosines below zero, ties, and a CLIP's part in it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium.errors import ConfigError
from sensorium.families.pmg.choosing import Chooser, Score, best, score
from sensorium.families.pmg.clip import Clip
from sensorium.families.pmg.tiny import CLIP, tiny_folder
from sensorium.families.pmg.toy import draw


def test_z_by_hand() -> None:
    assert score(0.3, 0.2).z == pytest.approx(2 / 3 * math.log(0.3) + 1 / 3 * math.log(0.2), abs=1e-12)
    assert score(0.3, 0.2, alpha=0.25).z == pytest.approx(0.25 * math.log(0.3) + 0.75 * math.log(0.2), abs=1e-12)
    assert score(None, 0.2) == Score(None, 0.2, math.log(0.2), False)  # no keywords: alpha 0
    assert score(0.9, 0.2, alpha=0).z == pytest.approx(math.log(0.2))


def test_cosines_below_zero_are_clamped_and_said() -> None:
    found = [score(*pair) for pair in ((-0.4, 0.2), (0.2, -0.1), (0.0, 0.0), (None, -1.0), (0.2, 0.2))]
    assert all(math.isfinite(one.z) for one in found)
    assert [one.clamped for one in found] == [True, True, True, True, False]
    assert found[0].z == pytest.approx(2 / 3 * math.log(1e-3) + 1 / 3 * math.log(0.2), abs=1e-12)
    assert found[0].taste == -0.4  # as it was measured


def test_ties_go_to_the_first() -> None:
    assert best([score(0.2, 0.2), score(0.3, 0.3), score(0.3, 0.3)]) == 1
    assert best([score(-0.1, -0.2), score(-0.5, -0.9)]) == 0


def test_a_clip_scores_pictures_against_texts() -> None:
    clip = Clip.open("random:tiny")
    pictures = [draw("red", "circle", 64), draw("blue", "square", 48), draw("green", "ring", 80).convert("L")]
    texts = ["a red circle", "a blue square", "word " * 200]  # longer than it reads
    seen, read = clip.pictures(pictures), clip.texts(texts)
    assert torch.allclose(seen.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(read.norm(dim=1), torch.ones(3), atol=1e-5)
    alone = torch.cat([clip.pictures([one]) for one in pictures])
    assert torch.allclose(seen, alone, atol=1e-5)  # fp32
    model, ids = clip.model, clip._tokenizer(texts[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        whole = model(input_ids=ids, pixel_values=clip._processor(images=pictures[0], return_tensors="pt").pixel_values)
    assert torch.allclose(
        seen[0] @ read[0], whole.text_embeds[0] @ whole.image_embeds[0], atol=1e-5
    )  # padding is unseen
    chooser = Chooser(clip, 2 / 3)
    found = chooser.scores(pictures, ("red", "round"), "a circle")
    words, target = clip.texts(["red, round"]), clip.texts(["a circle"])
    assert [one.taste for one in found] == pytest.approx((seen @ words.T)[:, 0].tolist(), abs=1e-5)
    assert [one.target for one in found] == pytest.approx((seen @ target.T)[:, 0].tolist(), abs=1e-5)
    assert all(one.taste is None for one in chooser.scores(pictures, (), "a circle"))
    said = chooser.told(found)
    assert json.loads(json.dumps(said, allow_nan=False))["chosen_image"] == best(found)
    assert said["scorer"] == {"name": "random:tiny", "digest": clip.digest}
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    assert not torch.allclose(clip.pictures([noise])[0], seen[0], atol=1e-2)


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"CLIP .*nothing.*: no such folder"):
        Clip.open(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="holds a model of kind 'llama'"):
        Clip.open(str(tiny_folder("llm")))
    folder = shutil.copytree(tiny_folder(CLIP), tmp_path / "clip")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="no tokenizer or no image processor"):
        Clip.open(str(folder))
