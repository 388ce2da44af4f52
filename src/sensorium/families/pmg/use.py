"""Use of a trained adapter: pictures for a user's taste.

>>> model = sensorium.load("runs/pmg")                                            # doctest: +SKIP
>>> [picture] = model.draw(["a red circle", "a red ring"], "a square")            # doctest: +SKIP
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sensorium import config as configuration
from sensorium.data.tastes import Liked, Taste, read_tastes
from sensorium.engine.contract import Evaluation, Host, Loaded
from sensorium.engine.settings import RunConfig
from sensorium.errors import CheckpointError, ConfigError, DataError
from sensorium.families.pmg import adapter_files
from sensorium.families.pmg.baselines import Baselines
from sensorium.families.pmg.comparing import CompareConfig, Studio, compare
from sensorium.families.pmg.drawing import DrawConfig, draw_all, mode_of, read_how, wishes_of, write_meta
from sensorium.families.pmg.folders import base_digests
from sensorium.families.pmg.painting import Painter, soft_tokens
from sensorium.families.pmg.prompts import Prompts, negative_prompt_of
from sensorium.families.pmg.sampling import Sampling, device_of
from sensorium.families.pmg.sources import open_prompts, places_of, read_splits
from sensorium.families.pmg.task import FROZEN_DTYPES, PMGTask, folder_of, open_task, sections

_ROWS = 8  # histories that the language model reads at a time


class Pictures:
    """A trained adapter between its frozen models. ``digest``: of its weights."""

    def __init__(self, task: PMGTask, config: RunConfig, template: str, digest: str) -> None:
        self.task, self.config, self.digest = task.eval(), config, digest
        model, self.data = sections(config)
        self.prompts: Prompts = open_prompts(model, self.data, template)

    @classmethod
    def of_run(cls, loaded: Loaded) -> Pictures:
        """The ``use`` of the family."""
        whole = adapter_files.without_average(loaded)
        assert isinstance(whole.task, PMGTask)
        described = adapter_files.description(whole)
        whole.task.adapter.described = described
        return cls(whole.task, whole.config, loaded.facts["template"], described["digest"])

    def draw(
        self, history: Sequence[str], target: str, style: str = "", how: Mapping[str, Any] | None = None
    ) -> list[Image.Image]:
        """Pictures of ``target`` for who liked what the captions ``history`` say. ``how``: see ``drawing.DrawConfig``.
        Raises ConfigError and DataError."""
        liked = tuple(Liked(f"history {number}", one, Path()) for number, one in enumerate(history))
        taste = Taste("", liked, Liked(target, target, Path()), style, "history")
        wanted = read_how(how or {})
        mode = mode_of(wanted, self.task.settings.conditioning, Host())
        soft = self._soft([taste], wanted)
        painter = Painter(self.task, folder_of(self.task), self._sampling(wanted))
        return list(painter.paint(wishes_of(taste, wanted, mode), soft, self._negative(wanted), wanted.batch))

    def draw_file(self, data: Path, out: Path, how: Mapping[str, Any], host: Host) -> None:
        """As ``use.Illustrator``: pictures for the samples of a file of processed JSON."""
        wanted = read_how(how)
        self._draw(self._tastes(data, wanted), out, wanted, host)

    def _tastes(self, data: Path, how: DrawConfig) -> list[Taste]:
        places = places_of(self.data)
        if how.image_dir is not None:
            places = type(places)(Path(how.image_dir).expanduser(), places.prefixes)
        return read_tastes(data.expanduser(), places)

    def draw_user(self, user: str, target: str, out: Path, how: Mapping[str, Any], host: Host) -> None:
        """As ``use.Illustrator``: the history is that of the user's last sample in the run's data."""
        if not target.strip():
            raise ConfigError("--target is empty; say what to draw")
        known = {taste.user: taste for found in read_splits(self.data).values() for taste in found}
        if user not in known:
            close = difflib.get_close_matches(user, known, n=3) or sorted(known)[:3]
            raise ConfigError(
                f"no user {user!r} in the run's data; there are {len(known):,}, such as {', '.join(close)}"
            )
        taste = known[user]
        asked = Taste(user, taste.history, Liked(target, target, Path()), taste.style, taste.where)
        self._draw([asked], out, read_how(how), host)

    def compare_file(self, data: Path, out: Path, how: Mapping[str, Any], host: Host) -> Evaluation:
        """As ``use.Comparer``: pictures for the samples of a file beside those of other ways to make them."""
        config = configuration.build(CompareConfig, how, "evaluate")
        rows = Baselines(self.task, self.data, config, out / "vectors")
        studio = Studio(
            dataset=self.data.name,
            side=self.data.image_size,
            resize=self.data.resize,
            clip=self.task.settings.clip,
            adapter=self.digest,
            draw=self._draw,
            invert=rows.invert,
            ip=rows.ip,
        )
        return compare(studio, self._tastes(data, config.draw), out, config, host)

    def _draw(self, tastes: Sequence[Taste], out: Path, how: DrawConfig, host: Host) -> None:
        device_of(how.device)
        mode = mode_of(how, self.task.settings.conditioning, host)
        bad = next((one for one in tastes if not one.target.caption.strip()), None)
        if bad is not None:
            raise DataError(str(bad.problem()))
        if mode in ("target_soft_style", "keywords") and not all(one.style for one in tastes):
            host.say(f"conditioning {mode}: some samples have no style text; that part is empty for them")
        meta = {
            "adapter_digest": self.digest,
            "bases": base_digests(self.task.settings),
            "mode": mode,
            "weights": self.task.settings.weights.model_dump(),
            "negative_prompt": self._negative(how),
            "samples": [[one.user, one.target.id, one.target.caption] for one in tastes],
            "drawing": {
                **how.model_dump(mode="json", exclude={"batch", "device", "image_dir", "mode", "negative"}),
                **{"steps": how.many_steps, "pixels": self.data.image_size},
            },
        }
        write_meta(out, meta)
        soft = self._soft(tastes, how)
        painter = Painter(self.task, folder_of(self.task), self._sampling(how))
        draw_all(painter, tastes, soft, (out, how, meta), host)
        host.say(f"{out}: {len(tastes)} samples, {how.images} pictures each")

    def _soft(self, tastes: Sequence[Taste], how: DrawConfig) -> dict[tuple[str, ...], Tensor]:
        """The first phase; when it is done the language model has left the device, and the UNet is there."""
        device = torch.device(device_of(how.device))
        for part in (self.task.adapter, self.task.llm):
            part.to(device)
        histories = [tuple(liked.caption for liked in taste.history) for taste in tastes]
        found = soft_tokens(self.task, self.prompts, histories, _ROWS)
        if device.type != "cpu":
            self.task.llm.to("cpu")
        self.task.unet.to(device)
        return found

    def _negative(self, how: DrawConfig) -> str:
        return negative_prompt_of(
            self.data.name, how.negative if how.negative is not None else self.data.negative_prompt
        )

    def _sampling(self, how: DrawConfig) -> Sampling:
        return Sampling(self.data.image_size, how.many_steps, how.guidance, how.scheduler)


def open_pictures(
    folder: str | Path, bases: Mapping[str, str] | None = None, *, allow_other_base: bool = False
) -> Pictures:
    """A trained adapter with its base models. ``bases``: where ``llm`` and ``stable_diffusion`` lie, if elsewhere.

    Raises CheckpointError where a base model has other sizes, or other weights unless ``allow_other_base``.
    """
    found = adapter_files.find(Path(folder))
    model, _ = sections(found.config)
    settings = model.model_copy(update={**(bases or {}), "ema_decay": 0.0, "gradient_checkpointing": False})
    now = base_digests(settings)
    other = [part for part, digest in found.facts["bases"].items() if now.get(part) != digest]
    task = open_task(settings, FROZEN_DTYPES[found.facts["precision"]])
    if task.adapter.sizes.plain() != found.facts["sizes"]:
        raise CheckpointError(
            f"{found.origin}: was trained for sizes {found.facts['sizes']}, these base models have "
            f"{task.adapter.sizes.plain()}"
        )
    if other and not allow_other_base:
        raise CheckpointError(
            f"{found.origin}: was trained with another {', '.join(other)}; give that one, or allow_other_base=True"
        )
    adapter_files.give(task.adapter, found)
    config = found.config.model_copy(update={"model": settings})
    loaded = Loaded(found.origin, found.origin, config, found.facts, task.eval(), "")
    return Pictures.of_run(loaded)
