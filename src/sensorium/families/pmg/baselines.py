"""Rows of a comparison that need no adapter: a word learned from a user's pictures, and pictures told as pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from sensorium import reading
from sensorium.data.tastes import Taste
from sensorium.engine.contract import Host
from sensorium.engine.seeds import derive
from sensorium.errors import ConfigError
from sensorium.families.pmg.comparing import CompareConfig
from sensorium.families.pmg.config import DataConfig
from sensorium.families.pmg.drawing import DrawConfig, Job, draw_all, missing, write_meta
from sensorium.families.pmg.folders import base_digests, file_digest
from sensorium.families.pmg.inversion import BEFORE, Lesson, Vocabulary, learn, pictures_of
from sensorium.families.pmg.ip_adapter import IpPainter, history_vectors, weights_file
from sensorium.families.pmg.painting import CAPTION_ONLY, Painter
from sensorium.families.pmg.preferences import Preference
from sensorium.families.pmg.prompts import negative_prompt_of
from sensorium.families.pmg.sampling import Sampling, device_of
from sensorium.families.pmg.task import PMGTask, folder_of
from sensorium.files import make_folder, write_file


@dataclass(frozen=True)
class Baselines:
    """Drawing with the frozen Stable Diffusion of a task. ``vectors``: folder of the learned words."""

    task: PMGTask
    data: DataConfig
    config: CompareConfig
    vectors: Path

    def invert(self, samples: Sequence[Taste], out: Path, how: DrawConfig, host: Host) -> None:
        """Row ``textual_inversion``: a vector a user, learned where it is not there yet."""
        device, folder, length = device_of(how.device), folder_of(self.task), self.task.shape.text_length
        job = self._job(samples, out, how, {"inversion": self.config.inversion.model_dump()})
        self.task.unet.to(device)
        self.task.alphas_T = self.task.alphas_T.to(device)
        words = Vocabulary(folder, device)
        learned = self._learned(samples, words, how.seed, host)
        painter = Painter(self.task, folder, self._sampling(how))
        asked = []
        for taste in samples:
            text = f"{taste.target.caption}{BEFORE} <{taste.user}>"
            with torch.no_grad():
                states = words.states([taste.target.caption], learned[taste.user].to(device), length)
            painter.remember(text, length, states[0])
            asked.append(replace(taste, target=replace(taste.target, caption=text)))
        draw_all(painter, _missing(asked, out), {}, job, host)

    def _learned(self, samples: Sequence[Taste], words: Vocabulary, seed: int, host: Host) -> dict[str, Tensor]:
        users = list(dict.fromkeys(taste.user for taste in samples))
        how, bases, found = self.config.inversion, base_digests(self.task.settings), {}
        with host.progress("textual inversion", len(users)) as advance:
            for number, user in enumerate(users):
                liked = pictures_of(user, samples)
                own = derive(seed, "inversion", user)
                lesson = Lesson(how.steps, how.lr, how.batch, self.data.image_size, self.data.resize, own)
                known = [str(lesson), bases["unet"], bases["vae"], bases["text_encoder"]]
                known += [f"{one.caption} {file_digest(one.path)}" for one in liked]
                path = self.vectors / f"{_digest(known)[:24]}.safetensors"
                if path.is_file():
                    found[user] = _read_vector(path)
                else:
                    found[user] = learn(self.task, folder_of(self.task), words, liked, lesson)
                    make_folder(self.vectors)
                    write_file(path, safetensors.torch.save({"vector": found[user]}))
                advance(number + 1, len(users))
        return found

    def ip(self, samples: Sequence[Taste], out: Path, how: DrawConfig, host: Host) -> None:
        """Row ``ip_adapter``: the mean vector of the history's pictures beside the caption."""
        folder, scale = Path(str(self.config.ip_adapter)).expanduser(), self.config.ip_scale
        device = device_of(how.device)
        job = self._job(samples, out, how, {"ip_adapter": file_digest(weights_file(folder)), "ip_scale": scale})
        self.task.unet.to(device)
        vectors = history_vectors(folder, samples, device)
        painter = IpPainter(self.task, folder_of(self.task), self._sampling(how), folder, scale)
        draw_all(painter, _missing(samples, out), vectors, job, host)

    def _sampling(self, how: DrawConfig) -> Sampling:
        return Sampling(self.data.image_size, how.many_steps, how.guidance, how.scheduler)

    def _job(self, samples: Sequence[Taste], out: Path, how: DrawConfig, more: Mapping[str, Any]) -> Job:
        """As of an adapter's pictures, without the adapter. Writes ``meta.json``."""
        negative = how.negative if how.negative is not None else self.data.negative_prompt
        private = {"batch", "device", "image_dir", "preferences", "mode", "negative", "clip"}
        meta = {
            "adapter_digest": None,
            "bases": base_digests(self.task.settings),
            "mode": CAPTION_ONLY,
            "weights": self.task.settings.weights.model_dump(),
            "negative_prompt": negative_prompt_of(self.data.name, negative),
            "samples": [[one.user, one.target.id, one.target.caption] for one in samples],
            "histories": _digest(
                [[liked.caption, file_digest(liked.path)] for one in samples for liked in one.history]
            ),
            "drawing": {
                **how.model_dump(mode="json", exclude=private),
                **{"steps": how.many_steps, "pixels": self.data.image_size},
            },
            **more,
        }
        write_meta(out, meta)
        return Job(out, how, meta)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _missing(samples: Sequence[Taste], out: Path) -> dict[int, tuple[Taste, Preference]]:
    """What is not drawn yet, by number; no words are told."""
    return {number: (samples[number], Preference()) for number in missing(out, len(samples))}


def _read_vector(path: Path) -> Tensor:
    try:
        return safetensors.torch.load(reading.read_bytes(path))["vector"]
    except (OSError, safetensors.SafetensorError, LookupError) as error:
        raise ConfigError(f"{path}: damaged ({error}); remove it, and it is learned again") from error
