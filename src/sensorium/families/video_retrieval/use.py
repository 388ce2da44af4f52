"""Use of a trained model: search for videos, and for the segment of one that a text describes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from sensorium import exported
from sensorium.data import search_index
from sensorium.data.frames import DirectFrames, Look, Stretch
from sensorium.data.video import ENDINGS
from sensorium.engine.contract import Hit, Host, Loaded
from sensorium.errors import ConfigError, DataError
from sensorium.families.video_retrieval.data import Clip, EvalSource, Media, TrainSource
from sensorium.families.video_retrieval.localise import Event, Timeline, timeline
from sensorium.families.video_retrieval.plan import frames_words
from sensorium.families.video_retrieval.shape import clip_shape
from sensorium.families.video_retrieval.sources import sources
from sensorium.families.video_retrieval.task import VideoRetrievalTask, sections
from sensorium.families.video_retrieval.words import open_tokenizer

BATCH = 16  # videos or texts of one pass
ASKED, FOUND = ("text", "video"), ("video", "text")


class Searcher:
    """A trained run with its index (data/search_index.py), which is built at the first search and kept in the run.

    ``folder``: search in the videos that lie there, instead of the run's data; their index is kept in the run, too, as
    long as their names, sizes and times of change stay. An exported model encodes, and searches in folders.
    """

    def __init__(self, loaded: Loaded, folder: Path | None = None) -> None:
        assert isinstance(loaded.task, VideoRetrievalTask)
        self.loaded, self.model, self.folder = loaded, loaded.task.model, folder
        model, data = sections(loaded.config)
        look = Look(clip_shape(model).resolution, data.cache_fps, data.cache_max_frames)
        frames, length = frames_words(model, data.datatype)
        self._matrices: dict[str, np.ndarray] = {}
        self.media = Media(DirectFrames(look), open_tokenizer(model, length), frames, data.sampling)

    def within(self, folder: Path) -> Searcher:
        """The same model over the videos of a folder."""
        return Searcher(self.loaded, folder)

    def encode(self, query: Mapping[str, str]) -> np.ndarray:
        """``[E]`` unit vector of a text or of a video's path. Raises ConfigError for anything else, and for both."""
        if len(query) != 1 or not query.keys() <= set(ASKED):
            asked = ", ".join(query) or "nothing"
            raise ConfigError(f"{self.loaded.run}: cannot ask with {asked}; it knows text or video, one at a time")
        [(modality, value)] = query.items()
        if modality == "text":
            vector: np.ndarray = self.encode_texts([value])[0]
            return vector
        return self._encode_videos([Stretch(Path(value))])[0]

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors ``[B, E]``."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH):
                parts.append(self.model.encode_text(*self.media.words.encode(texts[start : start + BATCH])).numpy())
        return np.concatenate(parts)

    def _encode_videos(self, stretches: Sequence[Stretch]) -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(stretches), BATCH):
                some = [self.media.video(one, None) for one in stretches[start : start + BATCH]]
                video = torch.from_numpy(np.stack(some))
                mask = torch.ones(video.shape[:2], dtype=torch.bool)
                parts.append(self.model.encode_video(video, mask).video.numpy())
        return np.concatenate(parts)

    def search(self, query: Mapping[str, str], among: str | None = None, k: int = 5, rerank: int = 0) -> list[Hit]:
        """The ``k`` best videos, each with the segment that fits the text best; for a video the best texts."""
        modality = among or ("video" if "text" in query else "text")
        if modality not in FOUND or rerank:
            what = "re-rank" if rerank else f"search among {modality}"
            raise ConfigError(f"{self.loaded.run}: cannot {what}; it finds video and text by what their vectors say")
        embedding = self.encode(query)
        if modality not in self._table.rows:
            raise ConfigError(f"{self.folder}: cannot search among {modality}; there are videos alone")
        matrix, rows = self._matrix(modality), self._table.rows[modality]
        scores = matrix @ embedding
        best = np.argsort(-scores, kind="stable")[:k]
        hits = [self._hit(rows[i], float(scores[i]), modality) for i in best.tolist()]
        if modality == "text" or "text" not in query:
            return hits
        segments = [self._segment(rows[i], embedding) for i in best.tolist()]
        return [replace(hit, segment=segment) for hit, segment in zip(hits, segments, strict=True)]

    def retrieve_event(self, video: str | Path, query: str, top_k: int = 5) -> Event:
        """The segment of a video file that ``query`` describes best, and its ``top_k`` best frames."""
        return timeline(self.model, self.media.reader, Stretch(Path(video))).event(self.encode({"text": query}), top_k)

    def embeddings(self) -> dict[str, tuple[list[dict[str, str | None]], np.ndarray]]:
        """By modality the items of the index and their unit vectors ``[N, E]``."""
        table = self._table
        return {
            name: ([table.items[row] for row in table.rows[name]], self._matrix(name))
            for name in FOUND
            if name in table.rows
        }

    def _hit(self, item: int, score: float, modality: str) -> Hit:
        content = self._table.items[item]
        assert content["id"] is not None
        if modality == "text":
            return Hit(score, content["id"], content["text"])
        return Hit(score, content["id"], content["text"], image=content["image"], video=content.get("video"))

    def _segment(self, item: int, embedding: np.ndarray) -> tuple[float, float] | None:
        """From the vectors of the frames, which the index holds; None for a still picture."""
        seconds = self._table.items[item].get("seconds")
        if seconds is None:
            return None
        start, end = (float(word) for word in seconds.split())
        first, last = np.searchsorted(self._table.rows["frame"], (item, item + 1)).tolist()
        event = Timeline(self._matrix("frame")[first:last], start, end, self.model.frames).event(embedding, 1)
        return event.start_s, event.end_s

    # --- the index

    @cached_property
    def _place(self) -> Path:
        root = self.loaded.run / "index"
        if self.folder is None:
            return root / self.loaded.digest[:16]
        listed = [(path.relative_to(self.folder).as_posix(), path.stat()) for path in _videos_in(self.folder)]
        stamps = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in listed]
        whole = hashlib.sha256(json.dumps([self.loaded.digest, str(self.folder.resolve()), stamps]).encode())
        return root / f"{self.loaded.digest[:16]}-{whole.hexdigest()[:16]}"

    @cached_property
    def _table(self) -> search_index.Table:
        if not os.path.lexists(self._place / search_index.TABLE):
            self.build_index()
        return search_index.read(self._place, self.loaded.digest)

    def _matrix(self, modality: str) -> np.ndarray:
        if modality not in self._matrices:  # proven once, not at each search
            self._matrices[modality] = search_index.open_matrix(self._place, self._table, modality)
        return self._matrices[modality]

    def build_index(self, host: Host | None = None) -> None:
        """Look at every video once, and at every caption of the run's data; appears by one rename."""
        host = host or Host()
        clips, captions = self._contents(host)
        items: list[dict[str, str | None]] = []
        vectors: dict[str, list[np.ndarray]] = {"video": [], "frame": []}
        rows: dict[str, list[int]] = {"video": [], "frame": []}
        with torch.inference_mode(), host.progress("look at videos", len(clips)) as advance:
            for number, clip in enumerate(clips):
                vectors["video"].append(self._encode_videos([clip.stretch]))
                path = str(clip.stretch.path.resolve())
                item = {"id": clip.id, "text": clip.text or None, "image": None, "audio": None}
                if clip.stretch.still:
                    items.append({**item, "image": path})
                else:
                    seen = timeline(self.model, self.media.reader, clip.stretch)
                    vectors["frame"].append(seen.vectors)
                    rows["frame"] += [number] * len(seen.vectors)
                    items.append({**item, "video": path, "seconds": f"{seen.start!r} {seen.end!r}"})
                rows["video"].append(number)
                advance(number + 1, len(clips))
        if captions:
            rows["text"] = list(range(len(items), len(items) + len(captions)))
            items += [{"id": name, "text": text, "image": None, "audio": None} for text, name in captions.items()]
            vectors["text"] = [self.encode_texts(list(captions))]
        empty = np.zeros((0, self.model.clip.shape.embed), np.float32)
        matrices = {name: np.concatenate([empty, *parts]) for name, parts in vectors.items()}
        search_index.write(self._place, {"digest": self.loaded.digest, "rows": rows, "items": items}, matrices)

    def _contents(self, host: Host) -> tuple[list[Clip], dict[str, str]]:
        """The videos to search in, each once, and captions with the id of their first video."""
        if self.folder is not None:
            paths = _videos_in(self.folder)
            names = [path.relative_to(self.folder).as_posix() for path in paths]
            return [Clip(name, Stretch(path), n) for n, (name, path) in enumerate(zip(names, paths, strict=True))], {}
        if exported.is_export(self.loaded.run):
            raise ConfigError(
                f"{self.loaded.run}: an exported model holds no data to search in; name a folder of videos (--videos)"
            )
        found = sources(self.loaded.config, host)
        clips: dict[Stretch, Clip] = {}
        captions: dict[str, str] = {}
        for part in (found.train, found.val, found.test):
            if isinstance(part, TrainSource):
                some, pairs = part.clips, [(text, clip) for clip, text in part.pairs]
            elif isinstance(part, EvalSource):
                some, pairs = part.videos, list(part.queries)
            else:
                continue
            for clip in some:
                clips.setdefault(clip.stretch, clip)
            for text, number in pairs:
                captions.setdefault(text, some[number].id)
        return list(clips.values()), captions


def _videos_in(folder: Path) -> list[Path]:
    """Raises DataError when there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder of videos")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not found:
        raise DataError(f"{folder}: holds no videos ({', '.join(ENDINGS)})")
    return found
