"""What ``sensorium data download`` can fetch: files with their sizes, published checksums and licences.

Only numbers that somebody published stand here: a size without ``exact`` is about right, and a file without a checksum
gets its sha256 recorded when it is fetched for the first time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sensorium.errors import ConfigError

Kind = Literal["zip", "tar", "7z", "file"]


@dataclass(frozen=True)
class Remote:
    """One file to fetch. ``kind``: how it is unpacked; a ``file`` is kept as it is.

    ``folder``: where its content goes below the root, whatever stands above it in the archive. ``keep``: patterns of
    file names that are taken, each of which must be found; empty takes all. ``unpacked``: bytes of the content, about.
    """

    name: str
    url: str
    kind: Kind
    size: int | None = None
    exact: bool = False
    md5: str | None = None
    sha256: str | None = None
    folder: str = ""
    keep: tuple[str, ...] = ()
    unpacked: int | None = None


@dataclass(frozen=True)
class Source:
    """A data set that can be asked for by name. ``manual``: how to get what no program may or can fetch, step by step.
    ``clips``: bytes, about, of the sound that comes clip by clip from elsewhere where it is asked for."""

    name: str
    summary: str
    licence: str
    files: tuple[Remote, ...] = ()
    manual: str = ""
    clips: int = 0


@dataclass(frozen=True)
class Goal:
    """A data set as the training guides name it, complete: its sources, and the reader that must be able to read it."""

    name: str
    sources: tuple[str, ...]
    reader: str


_FLICKR8K = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"
_COCO = "http://images.cocodataset.org"  # its certificate is the storage provider's; the checksums prove the files
_LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/datasets"
_CLOTHO = "https://zenodo.org/record/4783391/files"
# A commit of its repository: the checksums are those of the lists of version 1 there, which stay what they are.
_AUDIOCAPS = "https://raw.githubusercontent.com/cdjkim/audiocaps/d004db3ea1b01cf4fd0347dd8d27db90cadc8809/dataset"
_ESC50 = "https://github.com/karolpiczak/ESC-50/archive/refs/heads"
_COCO_LICENCE = "annotations: CC BY 4.0; images: Flickr terms of use"


def _coco(folder: str, name: str, md5: str, size: int | None = None) -> Remote:
    return Remote(name, f"{_COCO}/{folder}/{name}", "zip", size, exact=size is not None, md5=md5)


def _clotho(name: str, md5: str) -> Remote:
    return Remote(name, f"{_CLOTHO}/{name}", "file", md5=md5)


def _clotho_sounds(part: str, md5: str, sounds: int) -> Remote:
    """About 6.5 GB for 5,929 sounds in all are published; unpacked, 22.5 s of 16 bit at 44.1 kHz in the mean."""
    name, size = f"clotho_audio_{part}.7z", 6_500_000_000 * sounds // 5929
    unpacked = sounds * 1_985_000
    return Remote(name, f"{_CLOTHO}/{name}", "7z", size, md5=md5, folder=part, keep=("*.wav",), unpacked=unpacked)


def _audiocaps(split: str, size: int, md5: str) -> Remote:
    return Remote(f"{split}.csv", f"{_AUDIOCAPS}/{split}.csv", "file", size, exact=True, md5=md5)


_SOURCES = (
    Source(
        "flickr8k",
        "Flickr8k: 8,091 photographs with five captions each",
        "research, not commercial; officially by request, this is a copy",
        (
            Remote(
                "Flickr8k_Dataset.zip",
                f"{_FLICKR8K}/Flickr8k_Dataset.zip",
                "zip",
                1_000_000_000,
                md5="f18a1e2920de5bd84dae7cf08ec78978",
                folder="Flicker8k_Dataset",
                keep=("*.jpg",),
            ),
            Remote(
                "Flickr8k_text.zip",
                f"{_FLICKR8K}/Flickr8k_text.zip",
                "zip",
                2_300_000,
                md5="bf6c1abcb8e4a833b7f922104de18627",
                keep=("Flickr8k.token.txt", *(f"Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test"))),
            ),
        ),
    ),
    Source(
        "facc",
        "Flickr Audio Caption Corpus: 40,000 captions of Flickr8k read aloud by 183 speakers",
        "CC BY-SA",
        (
            Remote(
                "flickr_audio.tar.gz",
                "https://groups.csail.mit.edu/sls/downloads/flickraudio/downloads/flickr_audio.tar.gz",
                "tar",
                4_200_000_000,
                md5="9d078f1f150c26e864aa64d1d733779a",
                folder="flickr_audio",
                keep=("*.wav", "wav2capt.txt", "wav2spk.txt"),
                unpacked=5_400_000_000,  # 40,000 recordings of about 4.2 s at 16 kHz, 16 bit
            ),
        ),
    ),
    Source(
        "coco",
        "COCO 2017: 123,287 images with captions and objects",
        _COCO_LICENCE,
        (
            _coco("annotations", "annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c", 252_907_541),
            _coco("zips", "val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", 815_585_330),
            _coco("zips", "train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798),
        ),
    ),
    Source(
        "coco2014",
        "COCO 2014: the same images under their older names",
        _COCO_LICENCE,
        (
            _coco("annotations", "annotations_trainval2014.zip", "0a379cfc70b0e71301e0f377548639bd"),
            _coco("zips", "val2014.zip", "a3d79f5ed8d289b7a7554ce06a5782b3"),
            _coco("zips", "train2014.zip", "0da8c0bd3d6becc4dcb32757491aca88"),
        ),
    ),
    Source(
        "coco-karpathy",
        "Karpathy's split of COCO as three lists of captions, in the form of LAVIS",
        "captions: CC BY 4.0",
        tuple(
            Remote(name := f"coco_karpathy_{split}.json", f"{_LAVIS}/{name}", "file", md5=md5)
            for split, md5 in (
                ("train", "aa31ac474cf6250ebb81d18348a07ed8"),
                ("val", "b273847456ef5580e33713b1f7de52a0"),
                ("test", "3ff34b0ef2db02d01c37399f6a2a6cd1"),
            )
        ),
    ),
    Source(
        "karpathy",
        "Karpathy's splits with captions: dataset_coco.json, dataset_flickr8k.json, dataset_flickr30k.json",
        "none stated; captions as in their data sets",
        (
            Remote(
                "caption_datasets.zip",
                "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
                "zip",
                36_000_000,
                keep=("dataset_*.json",),
            ),
        ),
    ),
    Source(
        "clotho",
        "Clotho 2.1: sounds of 15 to 30 s with five captions each",
        "sounds: Creative Commons, stated for each in the metadata; captions: Tampere University, not commercial",
        (
            _clotho("clotho_captions_development.csv", "d4090b39ce9f2491908eebf4d5b09bae"),
            _clotho("clotho_captions_validation.csv", "5879e023032b22a2c930aaa0528bead4"),
            _clotho("clotho_captions_evaluation.csv", "1b16b9e57cf7bdb7f13a13802aeb57e2"),
            _clotho("clotho_metadata_development.csv", "170d20935ecfdf161ce1bb154118cda5"),
            _clotho("clotho_metadata_validation.csv", "2e010427c56b1ce6008b0f03f41048ce"),
            _clotho("clotho_metadata_evaluation.csv", "13946f054d4e1bf48079813aac61bf77"),
            _clotho_sounds("validation", "7dba730be08bada48bd15dc4e668df59", 1045),
            _clotho_sounds("evaluation", "4569624ccadf96223f19cb59fe4f849f", 1045),
            _clotho_sounds("development", "c8b05bc7acdb13895bb3c6a29608667e", 3839),
        ),
    ),
    Source(
        "audiocaps",
        "AudioCaps: captions of ten-second clips from YouTube",
        "lists: MIT, for academic purposes only; the clips belong to their makers",
        (
            _audiocaps("train", 3_576_723, "be909c34c4aa154f53acab960a1e998b"),
            _audiocaps("val", 171_918, "29adf3a58afc406fa3a9bd785e20db51"),
            _audiocaps("test", 402_246, "9775aec3f52037d12cacda132dd5316d"),
        ),
        manual="the sound is not published. --audio cuts each clip from YouTube with yt-dlp and ffmpeg, which have to "
        "be installed: about 43 GB at 32 kHz, for days, and many clips are gone for ever. Or put the clips that you "
        "have below its folder, as YOUTUBE_START.wav, AUDIOCAP.wav, YOUTUBE.wav or YYOUTUBE.wav",
        clips=43_000_000_000,
    ),
    Source(
        "voxceleb",
        "VoxCeleb 1 and 2: speech of well-known people, by speaker",
        "CC BY 4.0; biometric data of people, never to be published again",
        manual="its authors give it to those who fill in their form. (1) Fill in the form on "
        "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/, or take the copy that the Hugging Face hub shows for "
        "VoxCeleb. (2) Join its parts (cat vox1_dev_wav_part* > vox1_dev_wav.zip) and unpack them: 33 GB for "
        "VoxCeleb 1 alone. (3) Put vox1_meta.csv, wav/ID/VIDEO/N.wav and, for faces, faces/ID/*.jpg into its folder. "
        "These are biometric data of people: keep them to yourself, never publish them again, and follow the law of "
        "your country",
    ),
    Source(
        "esc50",
        "ESC-50: 2,000 environmental sounds of 50 classes, for evaluation",
        "as its repository states; CC BY-NC by common report",
        (
            Remote(
                "ESC-50-master.zip",
                f"{_ESC50}/master.zip",
                "zip",
                600_000_000,
                folder="ESC-50-master",
                keep=("*.wav", "esc50.csv", "LICENSE"),
                unpacked=882_000_000,  # 2,000 sounds of 5 s, 16 bit at 44.1 kHz
            ),
        ),
    ),
    Source(
        "ser30k",
        "SER30K: stickers with the feelings they express",
        "as the form says",
        manual="its authors give it to those who fill in their request form",
    ),
)

GOALS: dict[str, Goal] = {
    goal.name: goal
    for goal in (
        Goal("coco", ("coco", "coco-karpathy"), "coco"),
        Goal("clotho", ("clotho",), "clotho"),
        Goal("audiocaps", ("audiocaps",), "audiocaps"),
        Goal("voxceleb", ("voxceleb",), "voxceleb"),
        Goal("esc50", ("esc50",), "esc50"),
    )
}

CATALOGUE: dict[str, Source] = {source.name: source for source in _SOURCES}


def find(names: Sequence[str]) -> list[Source]:
    """The named data sets, each once. Raises ConfigError naming those that are not in the catalogue."""
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown:
        raise ConfigError(f"no data set {', '.join(map(repr, unknown))} to download; there are {', '.join(CATALOGUE)}")
    return [CATALOGUE[name] for name in dict.fromkeys(names)]


def goals(names: Sequence[str]) -> list[Goal]:
    """The named data sets of the guides, each once; ``all``: every one. Raises ConfigError naming unknown ones."""
    unknown = [name for name in names if name not in (*GOALS, "all")]
    if unknown:
        raise ConfigError(f"no data set {', '.join(map(repr, unknown))}; there are {', '.join(GOALS)}, all")
    return list(GOALS.values()) if "all" in names else [GOALS[name] for name in dict.fromkeys(names)]
