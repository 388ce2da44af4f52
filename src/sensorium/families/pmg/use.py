"""Use of a trained adapter: pictures for a user's taste.

>>> model = sensorium.load("runs/pmg")                                            # doctest: +SKIP
>>> [picture] = model.draw(["a red circle", "a red ring"], "a square")            # doctest: +SKIP
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from sensorium import config as configuration
from sensorium.data.tastes import Liked, Taste, read_styles, read_tastes
from sensorium.engine.contract import Evaluation, Host, Loaded
from sensorium.engine.settings import RunConfig
from sensorium.errors import CheckpointError, ConfigError, DataError
from sensorium.families.pmg import adapter_files
from sensorium.families.pmg.baselines import Baselines
from sensorium.families.pmg.choosing import Chooser, best
from sensorium.families.pmg.clip import Clip
from sensorium.families.pmg.comparing import Bench, CompareConfig, Studio, compare
from sensorium.families.pmg.conditioning import lengths_of
from sensorium.families.pmg.config import DrawMode
from sensorium.families.pmg.diffusion import open_tokenizer
from sensorium.families.pmg.drawing import (
    DrawConfig,
    Job,
    draw_all,
    missing,
    mode_of,
    read_how,
    read_info,
    wishes_of,
    write_meta,
)
from sensorium.families.pmg.folders import base_digests
from sensorium.families.pmg.keywords import COUNT, TARGET_ASKED, Answer, Asking, ask
from sensorium.families.pmg.painting import Painter, soft_tokens
from sensorium.families.pmg.preferences import SAID, Origin, Preference, captions, collect, of_target, origins
from sensorium.families.pmg.prompts import Prompts, negative_prompt_of
from sensorium.families.pmg.sampling import Sampling, device_of
from sensorium.families.pmg.sources import open_prompts, places_of, read_splits
from sensorium.families.pmg.task import FROZEN_DTYPES, PMGTask, folder_of, open_task, sections
from sensorium.parts.encoders_base import quiet

STYLED: tuple[DrawMode, ...] = ("target_soft_style", "keywords")  # modes that tell the UNet the words of the taste
_ROWS = 1  # histories read at a time: together they would change each other by rounding, and so the pictures


@dataclass(frozen=True)
class Plan:
    """What a drawing is decided to be, before anything is computed. ``origins``: of each sample's words."""

    mode: DrawMode
    origins: Sequence[Origin]
    chooser: Chooser | None


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
        """Pictures of ``target`` for who liked what the captions ``history`` say; with ``select`` the best alone.
        ``how``: see ``drawing.DrawConfig``. Raises ConfigError and DataError."""
        liked = tuple(Liked(f"history {number}", one, Path()) for number, one in enumerate(history))
        taste = Taste("", liked, Liked(target, target, Path()), style, "history")
        wanted, host = read_how(how or {}), Host()
        plan = self._plan([taste], wanted, host)
        words = self._words([taste], plan, wanted, host)
        soft = self._soft([taste], wanted, host)
        painter = Painter(self.task, folder_of(self.task), self._sampling(wanted))
        wishes = wishes_of(taste, wanted, plan.mode, words[0])
        found = list(painter.paint(wishes, soft, self._negative(wanted), wanted.batch))
        if plan.chooser is None:
            return found
        return [found[best(plan.chooser.scores(found, words[0].words, wishes[0].target))]]

    def redraw(self, folder: Path, batch: int = 8, device: str = "auto") -> list[Image.Image]:
        """The pictures of a sample's folder once more, from its ``info.json`` alone. Raises DataError, and
        CheckpointError where another adapter made them."""
        wishes, sampling, info = read_info(folder)
        weights = self.task.settings.weights.model_dump()
        if (info["adapter_digest"], info["weights"]) != (self.digest, weights):
            raise CheckpointError(f"{folder}: its pictures were made by another adapter ({info['adapter_digest']})")
        histories = [wishes[0].captions] if wishes else []
        soft = self._soft_of(histories, device, Host())
        painter = Painter(self.task, folder_of(self.task), sampling)
        return list(painter.paint(wishes, soft, info["negative_prompt"], batch))

    def draw_file(self, data: Path, out: Path, how: Mapping[str, Any], host: Host) -> None:
        """As ``contract.Illustrator``: pictures for the samples of a file of processed JSON."""
        wanted = read_how(how)
        self._draw(self._tastes(data, wanted), out, wanted, host)

    def draw_user(self, user: str, target: str, out: Path, how: Mapping[str, Any], host: Host) -> None:
        """As ``contract.Illustrator``: the history is that of the user's last sample in the run's data."""
        if not target.strip():
            raise ConfigError("--target is empty; say what to draw")
        wanted = read_how(how)
        if wanted.image_dir is not None:
            raise ConfigError("--image-dir has no effect with --user: the run's data say where pictures are")
        known = {taste.user: taste for found in read_splits(self.data).values() for taste in found}
        if user not in known:
            close = difflib.get_close_matches(user, known, n=3) or sorted(known)[:3]
            raise ConfigError(
                f"no user {user!r} in the run's data; there are {len(known):,}, such as {', '.join(close)}"
            )
        taste = known[user]
        style = taste.style or (self._styles(wanted) or {}).get(user, "")
        asked = Taste(user, taste.history, Liked(target, target, Path()), style, taste.where)
        self._draw([asked], out, wanted, host)

    def compare_file(self, data: Path, out: Path, how: Mapping[str, Any], host: Host) -> Evaluation:
        """As ``contract.Comparer``: pictures for the samples of a file beside those of other ways to make them."""
        config = configuration.build(CompareConfig, how, "evaluate")
        rows = Baselines(self.task, self.data, config, out / "vectors")
        bench = Bench(self.data.name, self.data.image_size, self.data.resize, self.task.settings.clip)
        studio = Studio(bench, self.digest, self._draw, rows.invert, rows.ip)
        return compare(studio, self._tastes(data, config.draw), out, config, host)

    def _tastes(self, data: Path, how: DrawConfig) -> list[Taste]:
        places = places_of(self.data)
        if how.image_dir is not None:
            places = type(places)(Path(how.image_dir).expanduser(), places.prefixes)
        return read_tastes(data.expanduser(), places, self._styles(how))

    def _draw(self, tastes: Sequence[Taste], out: Path, how: DrawConfig, host: Host) -> None:
        bad = next((one for one in tastes if not one.target.caption.strip()), None)
        if bad is not None:
            raise DataError(str(bad.problem()))
        plan = self._plan(tastes, how, host)
        job = Job(out, how, self._meta(tastes, plan, how), plan.chooser)
        write_meta(out, job.meta)
        numbers = missing(out, len(tastes))
        if len(numbers) < len(tastes):
            host.say(f"{out}: {len(tastes) - len(numbers)} of {len(tastes)} samples are there already")
        if numbers:
            some = [tastes[number] for number in numbers]
            words = self._words(some, replace(plan, origins=[plan.origins[number] for number in numbers]), how, host)
            soft = self._soft(some, how, host)
            painter = Painter(self.task, folder_of(self.task), self._sampling(how))
            draw_all(painter, dict(zip(numbers, zip(some, words, strict=True), strict=True)), soft, job, host)
        host.say(f"{out}: {len(tastes)} samples, {how.candidates} pictures each")

    def _plan(self, tastes: Sequence[Taste], how: DrawConfig, host: Host) -> Plan:
        """Everything that can be refused without computing."""
        device_of(how.device)
        mode = mode_of(how, self.task.settings.conditioning, host)
        styled = mode in STYLED
        if how.preference_weights and not styled:
            raise ConfigError(f"preference_weights have no effect with mode {mode}; take {' or '.join(STYLED)}")
        needed = styled or (how.select and how.taste_share > 0)
        for name in ("preferences", "num_keywords"):
            if getattr(how, name) is not None and not needed:
                raise ConfigError(f"{name} has no effect with mode {mode}; take {' or '.join(STYLED)}, or select")
        if how.target_text == "keywords" and mode == "soft_only" and not how.select:
            raise ConfigError("target_text has no effect with mode soft_only, which is not told the target")
        found = origins(tastes, how.keywords, needed)
        for origin in sorted(set(found) - {"none"}):
            host.say(f"{SAID[origin]}: {found.count(origin):,} of {len(found):,} samples")
        chooser = None
        if how.select:
            clip = Clip.open(how.clip or self.task.settings.clip, device_of(how.device))
            chooser = Chooser(clip, how.taste_share)
        return Plan(mode, found, chooser)

    def _meta(self, tastes: Sequence[Taste], plan: Plan, how: DrawConfig) -> dict[str, Any]:
        said = [[*captions(one), one.style, origin] for one, origin in zip(tastes, plan.origins, strict=True)]
        private = {"batch", "device", "image_dir", "preferences", "mode", "negative", "clip"}
        scorer = None if plan.chooser is None else {"name": plan.chooser.clip.name, "digest": plan.chooser.clip.digest}
        return {
            "adapter_digest": self.digest,
            "bases": base_digests(self.task.settings),
            "mode": plan.mode,
            "weights": self.task.settings.weights.model_dump(),
            "negative_prompt": self._negative(how),
            "keywords_from": sorted({SAID[origin] for origin in plan.origins}),
            "scorer": scorer,
            "samples": [[one.user, one.target.id, one.target.caption] for one in tastes],
            "histories": hashlib.sha256(json.dumps(said).encode()).hexdigest(),
            "drawing": {
                **how.model_dump(mode="json", exclude=private),
                **{"steps": how.many_steps, "pixels": self.data.image_size},
            },
        }

    def _words(self, tastes: Sequence[Taste], plan: Plan, how: DrawConfig, host: Host) -> list[Preference]:
        """Of each taste, asked of the language model where need be: a part of the first phase."""
        asking = Asking(how.num_keywords or COUNT, next(self.task.llm.parameters()).dtype, device_of(how.device))

        def told(histories: Sequence[tuple[str, ...]], asking: Asking = asking) -> Mapping[tuple[str, ...], Answer]:
            self._move("cpu")  # the whole model comes besides its trunk
            return ask(self.task.settings, histories, asking, host)

        words = collect(tastes, plan.origins, asking.count, told)
        if how.target_text == "keywords":
            targets = [(taste.target.caption,) for taste in tastes]
            answers = told(targets, replace(asking, count=TARGET_ASKED, about="target"))
            words = [of_target(one, answers[target]) for one, target in zip(words, targets, strict=True)]
        if silent := sum(one.note is not None for one in words):
            host.say(f"the language model named no keywords for {silent:,} samples; their style part is empty")
        if plan.mode in STYLED:
            self._tell_cut(words, plan.mode, how, host)
        return words

    def _tell_cut(self, words: Sequence[Preference], mode: DrawMode, how: DrawConfig, host: Host) -> None:
        length = lengths_of(mode, self.task.shape.text_length, self.task.settings.num_image_prompt).style
        tokenizer = open_tokenizer(folder_of(self.task))
        times = int(max(how.preference_weights)) if how.weighting == "repeat" else 1
        with quiet():
            long = sum(len(tokenizer(one.text(times))["input_ids"]) > length for one in words)
        if long:
            host.say(f"the style of {long:,} samples is longer than the {length} tokens that it has, and is cut")

    def _soft(self, tastes: Sequence[Taste], how: DrawConfig, host: Host) -> dict[tuple[str, ...], Tensor]:
        return self._soft_of([captions(taste) for taste in tastes], how.device, host)

    def _soft_of(self, histories: Sequence[tuple[str, ...]], device: str, host: Host) -> dict[tuple[str, ...], Tensor]:
        """The first phase; when it is done the language model has left the device, and the UNet is there."""
        self._move("cpu")
        place = device_of(device)
        for part in (self.task.adapter, self.task.llm):
            part.to(place)
        found = soft_tokens(self.task, self.prompts, histories, _ROWS, host)
        self._move("cpu")
        self.task.unet.to(place)
        return found

    def _move(self, device: str) -> None:
        """All parts: whatever is next needs the room."""
        for part in (self.task.adapter, self.task.llm, self.task.unet):
            part.to(device)

    def _styles(self, how: DrawConfig) -> dict[str, str] | None:
        """By user, as ``preferences`` or the run's data say."""
        given = how.preferences or self.data.user_preferences
        return None if given is None else read_styles(Path(given).expanduser())

    def _negative(self, how: DrawConfig) -> str:
        return negative_prompt_of(
            self.data.name, how.negative if how.negative is not None else self.data.negative_prompt
        )

    def _sampling(self, how: DrawConfig) -> Sampling:
        return Sampling(self.data.image_size, how.many_steps, how.guidance, how.scheduler)


def open_pictures(
    folder: str | Path,
    bases: Mapping[str, str] | None = None,
    data: Mapping[str, Any] | None = None,
    *,
    allow_other_base: bool = False,
) -> Pictures:
    """A trained adapter with its base models. ``bases``: where ``llm``, ``stable_diffusion`` and ``clip`` lie, if
    elsewhere; ``data``: settings of the data section to change.

    Raises CheckpointError where a base model has other sizes, or other weights unless ``allow_other_base``.
    """
    found = adapter_files.find(Path(folder))
    model, place = sections(found.config)
    settings = model.model_copy(
        update={**(bases or {}), "ema_decay": 0.0, "standardise": 0, "gradient_checkpointing": False}
    )
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
    changed = configuration.build(type(place), {**place.model_dump(), **(data or {})}, "data")
    config = found.config.model_copy(update={"model": settings, "data": changed})
    loaded = Loaded(found.origin, found.origin, config, found.facts, task.eval(), "")
    return Pictures.of_run(loaded)
