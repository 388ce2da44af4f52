"""FLICKR-AES, POG and SER30K in small, in the exact layout of their publishers."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

from PIL import Image

WORDS = ("a red boat", "an old tree", "the sea at night", "two dogs", "a street in rain", "a bowl of fruit")


def picture(number: int, side: int = 16) -> bytes:
    """A JPEG of which no two numbers have the same bytes."""
    colour = (number % 251, number // 251 % 251, 7 * number % 256)
    image = Image.new("RGB", (side, side), colour)
    image.putpixel((number % side, number // side % side), (255, 255, 255))
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=95, comment=str(number).encode())
    return packed.getvalue()


def write_pictures(folder: Path, names: list[str], first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, start=first):
        (folder / name).write_bytes(picture(number))


def write_captions(path: Path, names: list[str]) -> None:
    path.write_text(json.dumps({name: f"{WORDS[place % 6]} {place}" for place, name in enumerate(names)}))


def flickr_aes(root: Path, *, workers: int = 40, pictures: int = 120, liked: int = 12, seed: int = 0) -> Path:
    """Each worker rates ``liked`` pictures above 2, and a third as many not."""
    numbers = random.Random(seed)
    names = [f"farm1_26{place % 9}_{20_000_000 + place}_b.jpg" for place in range(pictures)]
    write_pictures(root / "40K", names)
    rows = ["worker, imagePair,score"]
    for worker in range(workers):
        rated = numbers.sample(names, liked + liked // 3)
        scores = [numbers.choice("345")] * liked + [numbers.choice("12")] * (liked // 3)
        numbers.shuffle(scores)
        rows += [f"A{worker:03}WÉRK,{name},{score}" for name, score in zip(rated, scores, strict=True)]
    (root / "FLICKR-AES_image_labeled_by_each_worker.csv").write_text("\r\n".join(rows) + "\r\n", encoding="utf-8-sig")
    scores = [f"{name} {numbers.random():.2f}" for name in names]
    (root / "FLICKR-AES_image_score.txt").write_text("\n".join(scores) + "\n")
    write_captions(root / "FLICKR_captions.json", [name.removesuffix(".jpg") for name in names])
    return root


def pog(root: Path, *, users: int = 60, items: int = 150, clicks: int = 9, url: str = "//127.0.0.1:9") -> Path:
    """Without pictures: those come by their addresses."""
    numbers = random.Random(1)
    names = [f"{place:032x}" for place in range(items)]
    root.mkdir(parents=True, exist_ok=True)
    outfits = {f"o{place:031x}": numbers.sample(names, 4) for place in range(users)}
    lines = [f"u{user:031x},{';'.join(numbers.sample(names, clicks))},{outfit}" for user, outfit in enumerate(outfits)]
    (root / "user_data.txt").write_text("\n".join(lines) + "\n")
    rows = [f"{outfit},{';'.join(inside)}" for outfit, inside in outfits.items()]
    (root / "outfit_data.txt").write_text("\n".join(rows) + "\n")
    told = [f"{name},{place % 7},{url}/{name}.jpg,连衣裙 {place}, 夏" for place, name in enumerate(names)]
    (root / "item_data.txt").write_text("\n".join(told) + "\n", encoding="utf-8")
    return root


def ser30k(root: Path, *, themes: int = 24, stickers: int = 6) -> Path:
    """With annotations as the publisher's reader has them."""
    entries, first = [], 0
    for theme in range(themes):
        names = [f"sticker_{place + 1}.jpg" for place in range(stickers)]
        write_pictures(root / "Images" / f"{theme:02}-pandá bear", names, first)
        first += stickers
        entries += [
            {"topic": f"{theme:02}-pandá bear", "file_name": name, "anno": 1 + place % 7, "text": "hi"}
            for place, name in enumerate(names)
        ]
    notes = root / "Annotations" / "image-level"
    notes.mkdir(parents=True)
    (notes / "train.json").write_text(json.dumps({"annotations": entries[::2]}))
    (notes / "test.json").write_text(json.dumps({"annotations": entries[1::2]}))
    write_captions(root / "ser30k_captions.json", [f"{one['topic']}/{one['file_name']}" for one in entries])
    return root
