"""Small data sets in exactly the forms in which they are published: COCO, Clotho, AudioCaps, VoxCeleb, ESC-50."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

PHOTOGRAPHS = (9, 25, 391895, 522418, 184613, 318219, 554625, 574769)  # numbers; the last is in no split of Karpathy
KARPATHY = ("train", "train", "restval", "val", "test", "train", "test")  # of all but the last
IN_VAL2017 = (391895, 574769)  # the others lie in train2017, those of val and test among them
LABELS = {9: (1, 13), 25: (13,), 391895: (13,), 184613: (16, 1)}
CATEGORIES = {1: "person", 13: "stop sign", 16: "bird"}  # 12 is a hole


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (number % 256, number // 256 % 256, 7)).save(path)


def sound(path: Path, number: int, rate: int = 44100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(rate // 100, 0.01 + number / 100), rate, subtype="PCM_16")


def captions_of(number: int) -> list[str]:
    """Five to seven, one of them with stray ends of lines."""
    return [f"A dog  number {number}\nseen {k} times.\n" for k in range(5 + number % 3)]


def coco(root: Path, year: int = 2017) -> Path:
    """Photographs, captions and labels of COCO, without Karpathy's split."""
    parts = {"train": [n for n in PHOTOGRAPHS if n not in IN_VAL2017], "val": list(IN_VAL2017)}
    for part, numbers in parts.items():
        folder = f"{part}{year}"
        names = {n: f"{n:012}.jpg" if year == 2017 else f"COCO_{folder}_{n:012}.jpg" for n in numbers}
        for number, name in names.items():
            picture(root / folder / name, number)
        images = [{"license": 3, "file_name": name, "id": n, "height": 6, "width": 8} for n, name in names.items()]
        captions = [
            {"image_id": n, "id": 1000 * n + k, "caption": text}
            for n in numbers
            for k, text in enumerate(captions_of(n))
        ]
        things = [
            {"segmentation": [[1.5, 2.0, 3.25, 4]], "iscrowd": 0, "image_id": n, "category_id": c, "id": n + c}
            for n in numbers
            for c in LABELS.get(n, ())
        ]
        names_of = [{"supercategory": "x", "id": c, "name": name} for c, name in reversed(CATEGORIES.items())]
        common = {"info": {"year": year}, "images": images, "licenses": [{"id": 3}]}
        put_json(root / f"annotations/captions_{folder}.json", common | {"annotations": captions})
        put_json(
            root / f"annotations/instances_{folder}.json",
            common | {"annotations": things, "categories": names_of},
        )
    return root


def name_of_2014(number: int) -> tuple[str, str]:
    """Folder and name by which Karpathy's file knows a photograph."""
    folder = "val2014" if number in IN_VAL2017 else "train2014"
    return folder, f"COCO_{folder}_{number:012}.jpg"


def karpathy_json(root: Path) -> Path:
    images = []
    for number, split in zip(PHOTOGRAPHS, KARPATHY, strict=False):
        folder, name = name_of_2014(number)
        sentences = [
            {"tokens": ["a"], "raw": text, "imgid": 0, "sentid": k} for k, text in enumerate(captions_of(number))
        ]
        image = {"filepath": folder, "sentids": [1], "filename": name, "imgid": 0, "split": split}
        images.append(image | {"sentences": sentences, "cocoid": number})
    return put_json(root / "dataset_coco.json", {"images": images, "dataset": "coco"})


def lavis_lists(root: Path) -> Path:
    lists: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    for number, split in zip(PHOTOGRAPHS, KARPATHY, strict=False):
        image = "/".join(name_of_2014(number))
        if split in ("train", "restval"):
            lists["train"] += [
                {"caption": text, "image": image, "image_id": f"coco_{number}"} for text in captions_of(number)
            ]
        else:
            lists[split].append({"image": image, "caption": captions_of(number)})
    for split, entries in lists.items():
        put_json(root / f"coco_karpathy_{split}.json", entries)
    return root


def put_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


CLOTHO = {
    "development": ["rain, on a roof.wav", "Métro porte (2).wav", " two  blanks.wav", "plain.wav"],
    "validation": ["val'idation.wav"],
    "evaluation": ["eval.wav", "Santa Motor.wav"],
}


def clotho(root: Path) -> Path:
    """Names with commas and accents, quoted captions, metadata in Latin-1, one of them with ``;``."""
    number = 0
    for part, names in CLOTHO.items():
        captions = ["file_name,caption_1,caption_2,caption_3,caption_4,caption_5"]
        mark = ";" if part == "evaluation" else ","
        about = [
            mark.join(
                ("file_name", "keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license")
            )
        ]
        for name in names:
            number += 1
            sound(root / part / name, number)
            quoted = f'"{name}"' if "," in name else name
            captions.append(f'{quoted},"Rain, heavy, falls ""hard""",a b,c  d,e f,sound {number}')
            link = "http://creativecommons.org/licenses/by/3.0/"
            about.append(
                mark.join(
                    (
                        quoted,
                        "rain,roof" if mark == ";" else '"rain;roof"',
                        f"{100 + number}",
                        "http://x",
                        '"[1, 2]"',
                        "Ä",
                        link,
                    )
                )
            )
        (root / f"clotho_captions_{part}.csv").write_text("\r\n".join([*captions, ""]), encoding="utf-8", newline="")
        (root / f"clotho_metadata_{part}.csv").write_bytes("\r\n".join([*about, ""]).encode("latin-1"))
    return root


CLIPS: Mapping[str, Sequence[tuple[str, int]]] = {
    "train": [("-1abcdefghi", 30), ("_2abcdefghi", 0), ("3abcdefghij", 110), ("4abcdefghij", 20), ("5abcdefghij", 1)],
    "val": [("6abcdefghij", 30), ("7abcdefghij", 30)],
    "test": [("8abcdefghij", 250), ("9abcdefghij", 30)],
}


def audiocaps(root: Path, version: int = 1) -> Path:
    """The lists; version 2 has the same clips to test on, and small letters."""
    root.mkdir(parents=True, exist_ok=True)
    number = 100
    for split, clips in CLIPS.items():
        rows = ["audiocap_id,youtube_id,start_time,caption"]
        for youtube, start in clips:
            for k in range(1 if split == "train" else 5):
                number += 1
                article = "A" if version == 1 else "a"
                rows.append(f'{number},{youtube},{start},"{article} bell rings, {k} times"')
        (root / f"{split}.csv").write_text("\r\n".join([*rows, ""]), newline="")
    return root


SPEAKERS = {
    "id10001": ("A.J._Buckley", "m", "Ireland", "dev"),
    "id10002": ("A.R._Rahman", "m", "India", "dev"),
    "id10270": ("Eartha_Kitt", "f", "USA", "test"),
}


def voxceleb(root: Path) -> Path:
    """VoxCeleb 1: three speakers, one of them tested, two videos each, two utterances a video; faces of two."""
    rows = ["VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet"]
    rows += ["\t".join((name, *values)) for name, values in SPEAKERS.items()]
    root.mkdir(parents=True, exist_ok=True)
    (root / "vox1_meta.csv").write_text("\n".join([*rows, ""]))
    for number, (name, (face, _, _, part)) in enumerate(SPEAKERS.items()):
        for video in ("-5r0dWxy17C", "_zcIwhmdeo4"):
            for n in (1, 2):
                sound(root / part / "wav" / name / video / f"{n:05}.wav", number, 16000)
        if name != "id10002":
            for n in range(3):
                picture(root / "unzippedFaces" / (face if number else name) / "1.6" / "x" / f"{n:07}.jpg", n)
    pairs = ["1 id10270/-5r0dWxy17C/00001.wav id10270/_zcIwhmdeo4/00002.wav"]
    pairs.append("0 id10270/-5r0dWxy17C/00001.wav id10001/_zcIwhmdeo4/00099.wav")
    (root / "veri_test.txt").write_text("\n".join(pairs))
    (root / "iden_split.txt").write_text("1 id10001/-5r0dWxy17C/00001.wav\n3 id10001/-5r0dWxy17C/00002.wav\n")
    return root


def esc50(root: Path, wide: bool = True) -> Path:
    rows = ["filename,fold,target,category" + ",esc10,src_file,take" * wide]
    for number, category in enumerate(("dog", "crying_baby", "dog", "rain", "crying_baby")):
        target = {"dog": 0, "crying_baby": 20, "rain": 10}[category]
        name = f"{number + 1}-10003{number}-A-{target}.wav"
        sound(root / "ESC-50-master" / "audio" / name, number)
        rows.append(f"{name},{number + 1},{target},{category}" + f",True,10003{number},A" * wide)
    (root / "ESC-50-master" / "meta").mkdir()
    (root / "ESC-50-master" / "meta" / "esc50.csv").write_text("\n".join([*rows, ""]))
    return root
