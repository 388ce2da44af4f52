"""Where in a video is it? Segments found by frames that see each other, and by frames apart.

    python benchmarks/video_segments.py runs/video/unified-seed0 runs/video/tempme-seed0

Runs are those of benchmarks/video_training.py, or others over sets of short videos. Each test clip is put at a random
place among some others of the same set, and its caption is asked for. "as trained": a frame is scored by its own CLS
token, which from the first group of clips on sees other frames (what ``retrieve_event`` does); "frames apart": by the
same towers with LoRA folded in, and nothing merged or joined.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from common import machine, table

import sensorium
from sensorium.data.frames import DirectFrames, Look, Stretch
from sensorium.data.video_write import APART, write_video
from sensorium.engine.contract import Host
from sensorium.families.video_retrieval.data import EvalSource
from sensorium.families.video_retrieval.localise import Event, overlap, timeline
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel
from sensorium.families.video_retrieval.sources import sources
from sensorium.families.video_retrieval.use import Searcher

OVERLAPS = (0.3, 0.5, 0.7)
RATE, SIDE = 8, 112  # frames a second and pixels of what is joined
Scene = tuple[Path, str, tuple[float, float]]
"""A video, a caption, and from where to where it is true."""


def scenes(source: EvalSource, folder: Path, clips: int, draw: np.random.Generator) -> list[Scene]:
    """For each query a video of ``clips`` clips, one of which it is about."""
    reader, found = DirectFrames(Look(SIDE, RATE, 10_000)), []
    for number, (text, right) in enumerate(source.queries):
        others = draw.choice([n for n in range(len(source.videos)) if n != right], clips - 1, replace=False).tolist()
        place = int(draw.integers(clips))
        chosen = [*others[:place], right, *others[place:]]
        parts = [reader.read(source.videos[n].stretch, lambda length: reader.look.instants(length)) for n in chosen]
        start = sum(len(part) for part in parts[:place])
        frames = [image.resize((SIDE, SIDE)) for part in parts for image in part]
        path = folder / f"{number}.mp4"
        write_video(path, ((n / RATE, image) for n, image in enumerate(frames)), Fraction(RATE), APART)
        found.append((path, text, (start / RATE, (start + len(parts[place])) / RATE)))
    return found


def frames_apart(searcher: Searcher) -> Callable[[Path, str], Event]:
    """Reads videos with the searcher's towers alone."""
    whole = copy.deepcopy(searcher.model)
    whole.fold_lora()
    config = whole.config.model_copy(update={"kind": "clip_mean"})
    plain = UnifiedTempMeSTOPModel(config, "msrvtt", whole.clip).eval()

    def event(path: Path, text: str) -> Event:
        with torch.inference_mode():
            vector = plain.encode_text(*searcher.media.words.encode([text]))[0].numpy()
        return timeline(plain, searcher.media.reader, Stretch(path)).event(vector, 1)

    return event


def shares(values: list[float]) -> list[str]:
    return [f"{100 * float(np.mean([value >= least for value in values])):.1f}" for least in OVERLAPS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--clips", type=int, default=4, help="clips of a video")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        first = sensorium.load(given.runs[0])
        source = sources(first.loaded.config, Host()).test
        assert isinstance(source, EvalSource)
        made = scenes(source, Path(folder), given.clips, np.random.default_rng(given.seed))
        for run in given.runs:
            searcher: Searcher = sensorium.load(run)
            for name, way in (("as trained", searcher.retrieve_event), ("frames apart", frames_apart(searcher))):
                events = [way(path, text) for path, text, _ in made]
                found = [
                    overlap((event.start_s, event.end_s), true) for event, (*_, true) in zip(events, made, strict=True)
                ]
                rows.append((run.name, name, *shares(found), f"{np.mean(found):.3f}"))
    length = sum(end - start for *_, (start, end) in made) / len(made)
    whole = [1 / given.clips] * len(made)
    rows.append(("", "the whole video", *shares(whole), f"{np.mean(whole):.3f}"))
    print(machine())
    print(f"{len(made)} videos of {given.clips} clips of {length:.1f} s each")
    print(table(("run", "read-out", *(f"IoU >= {least:g}" for least in OVERLAPS), "mean IoU"), rows))


if __name__ == "__main__":
    main()
