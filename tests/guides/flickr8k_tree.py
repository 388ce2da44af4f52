"""A small Flickr8k in exactly the form in which it is published: twelve pictures, five captions each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

NAMES = [f"{1000268201 + 7919 * number}_{number:010x}.jpg" for number in range(12)]
LISTS = {"trainImages": NAMES[:7], "devImages": NAMES[7:9], "testImages": NAMES[9:11]}  # the twelfth is in no split
GHOST = "2258277193_586949ec62.jpg.1"
COLOURS = ("red", "green", "blue", "black", "white", "grey")


def make_tree(root: Path, *, sound: bool = False) -> Path:
    """35 captions to train on, 10 to validate, 10 to test. ``sound``: recordings of three captions of each picture."""
    draw = np.random.default_rng(0)
    pictures = root / "Flicker8k_Dataset"
    pictures.mkdir(parents=True)
    captions = []
    for number, name in enumerate(NAMES):
        Image.fromarray(draw.integers(0, 256, (40, 60, 3), np.uint8)).save(pictures / name)
        words = f"{COLOURS[number % 6]} {'dog' if number < 6 else 'child'}"
        captions += [f"{name}#{k}\tA {words}  runs , seen {k} times ." for k in range(5)]
    captions += [f"{GHOST}#{k}\tA ghost ." for k in range(5)]
    (root / "Flickr8k.token.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    for word, names in LISTS.items():
        (root / f"Flickr_8k.{word}.txt").write_bytes("\r\n".join([*names, ""]).encode())
    if sound:
        _add_sound(root / "flickr_audio", draw)
    return root


def _add_sound(folder: Path, draw: np.random.Generator) -> None:
    (folder / "wavs").mkdir(parents=True)
    joined, speakers = [], []
    for name in NAMES:
        for k in range(3):
            wav = f"{name.removesuffix('.jpg')}_{k}.wav"
            soundfile.write(folder / "wavs" / wav, draw.normal(0, 0.1, 8000), 16000, subtype="PCM_16")
            joined.append(f"{wav} {name} #{k}")
            speakers.append(f"{wav} {k}")
    (folder / "wav2capt.txt").write_text("\n".join(joined) + "\n")
    (folder / "wav2spk.txt").write_text("\n".join(speakers) + "\n")
