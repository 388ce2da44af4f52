"""The model section of a `video_retrieval` run, and what each of the six kinds switches on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Literal

from pydantic import Field, model_validator

from sensorium.config import Section

Kind = Literal["clip_mean", "lora", "tome", "tempme", "stop", "unified"]
Part = Literal["tempme", "stop"]
Mode = Literal["joint", "tempme_only", "stop_only", "sequential"]
KINDS: tuple[Kind, ...] = ("clip_mean", "lora", "tome", "tempme", "stop", "unified")
PARTS: tuple[Part, ...] = ("tempme", "stop")
_KIND = "null: as `kind` has it."


class SwitchesConfig(Section):
    """Single parts of the model on or off, whatever the kind says."""

    lora: bool | None = Field(None, description=f"LoRA on q, k and v of both towers; {_KIND}")
    merge: bool | None = Field(None, description=f"Merging of patches; {_KIND}")
    group: bool | None = Field(None, description=f"Joining neighbouring clips to one sequence; {_KIND}")
    positions: bool | None = Field(None, description=f"A learned vector for each clip that is joined; {_KIND}")
    spatial: bool | None = Field(None, description=f"The prompter that selects patches; {_KIND}")
    temporal: bool | None = Field(None, description=f"The prompter that puts slots between clips; {_KIND}")
    protect: bool | None = Field(None, description=f"Selected patches are merged last; {_KIND}")


class LossConfig(Section):
    """What is learned. Retrieval always compares the mean of the frames."""

    tempme_weight: float = Field(
        1.0, ge=0, le=1000, description="Weight of InfoNCE between text and the mean of the frames; 0 leaves it out."
    )
    stop_weight: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Weight of InfoNCE between text and the mean of the last slots; 0 leaves it out.",
    )
    positives: Literal["multi", "diagonal"] = Field(
        "multi", description="Which captions belong to a video: all of its own, or the one of the same row only."
    )
    negatives: Literal["effective", "micro"] = Field(
        "effective",
        description="With `train.micro_batches` above 1: all rows of a step meet in one loss (GradCache), or only "
        "those of one micro-batch.",
    )
    logit_scale: Literal["frozen", "learned"] = Field(
        "frozen",
        description="Factor of the cosines: as CLIP was trained (100), or learned with it (needs `model.train_clip`).",
    )

    @model_validator(mode="after")
    def _some(self) -> LossConfig:
        if self.tempme_weight == 0 and self.stop_weight == 0:
            raise ValueError("tempme_weight and stop_weight are both 0: nothing would be learned")
        return self


class ModelConfig(Section):
    """The defaults are the unified model on CLIP ViT-B/32."""

    kind: Kind = Field("unified", description="Which of the six models: a set of switches.")
    mode: Mode = Field(
        "joint",
        description="What trains: both parts, one of them, or one after the other (each for half of the epochs).",
    )
    trained: tuple[Part, ...] = Field(
        (), description="Parts whose weights come trained, through `train.warm_start`: they take part from the start."
    )
    clip: str = Field(
        "openai/clip-vit-base-patch32",
        min_length=1,
        description="CLIP's weights: a hub name or a local folder; or random ones from a fixed seed: `random:tiny`, "
        "`random:b32`, `random:b16`.",
    )
    frames: int | None = Field(None, ge=1, le=1024, description="Frames of a video; null: from `data.datatype`.")
    words: int | None = Field(
        None, ge=4, le=1024, description="Longest text in tokens, start and end included; null: from `data.datatype`."
    )
    groups: dict[int, int] | None = Field(
        None, description="Neighbouring clips that become one, by block; null: the usual ones of the number of frames."
    )
    frame_merge: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="Patches of a frame merged away in each block before the first group; "
        "null: 2 for patches of 32 pixels, 10 for 16.",
    )
    cut_cross_pct: int | None = Field(
        None, ge=0, le=50, description="Percentage of tokens merged away where clips are joined; null: 30 or 40."
    )
    cut_inside_pct: int | None = Field(
        None,
        ge=0,
        le=50,
        description="Percentage merged away within each block from the first group on; null: 10 or 20.",
    )
    tome_r: int | None = Field(
        None, ge=0, le=1024, description="Kind `tome`: patches merged away in every block; null: 3 or 13."
    )
    lora_rank: int = Field(8, ge=1, le=256, description="Rank of LoRA.")
    train_clip: bool = Field(False, description="Train the towers, too.")
    width: int = Field(64, ge=2, le=1024, description="Bottleneck of the prompters.")
    slots: int = Field(4, ge=1, le=64, description="Prompt slots at each boundary of clips.")
    select_pct: int = Field(12, ge=1, le=50, description="Percentage of a frame's patches that are selected.")
    alpha: float = Field(
        0.5, ge=0, lt=1, description="Share of CLIP's attention in the choice of patches; the rest is change in time."
    )
    beta: float = Field(1.0, ge=0, le=100, description="How much more a selected patch counts at a boundary.")
    spatial_block: int = Field(0, ge=0, le=95, description="Block in which patches are selected; none merges before.")
    protect: float = Field(
        0.2, ge=0, le=4, description="Subtracted from the similarity of a selected patch in merging."
    )
    switches: SwitchesConfig = SwitchesConfig()
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        wanted = switches(self, PARTS)
        if wanted.temporal and not wanted.group:
            raise ValueError("switches.temporal needs switches.group: slots stand between clips that are joined")
        if wanted.positions and not wanted.group:
            raise ValueError("switches.positions needs switches.group: they tell the joined clips apart")
        if wanted.protect and not (wanted.spatial and wanted.merge):
            raise ValueError("switches.protect needs switches.spatial and switches.merge")
        if self.loss.tempme_weight == 0 and not wanted.temporal:
            raise ValueError("loss.tempme_weight is 0 and there are no slots: nothing would be learned")
        if self.loss.logit_scale == "learned" and not self.train_clip:
            raise ValueError("loss.logit_scale learned needs model.train_clip=true")
        return self


@dataclass(frozen=True)
class Switches:
    """Which parts take part. ``everywhere``: merging as in ToMe, the same number in every block."""

    lora: bool = False
    merge: bool = False
    group: bool = False
    positions: bool = False
    spatial: bool = False
    temporal: bool = False
    protect: bool = False
    everywhere: bool = False


_TEMPME = Switches(lora=True, merge=True, group=True, positions=True)
_OF_KIND: dict[Kind, Switches] = {
    "clip_mean": Switches(),
    "lora": Switches(lora=True),
    "tome": Switches(lora=True, merge=True, everywhere=True),
    "tempme": _TEMPME,
    "stop": Switches(group=True, spatial=True, temporal=True),
    "unified": replace(_TEMPME, spatial=True, temporal=True, protect=True),
}


def switches(config: ModelConfig, active: Collection[Part]) -> Switches:
    """What is on. A part that is not ``active`` takes everything of its own out: `unified` without `stop` is `tempme`,
    without `tempme` it is `stop`, without both `clip_mean`."""
    found = _OF_KIND[config.kind]
    given = {name: value for name, value in config.switches.model_dump().items() if value is not None}
    found = replace(found, **given)
    # What has no sense without another part leaves with it, unless it was asked for: that is refused above.
    needs = {
        "positions": found.group,
        "temporal": found.group,
        "protect": found.spatial and found.merge,
    }
    found = replace(found, **{name: False for name, met in needs.items() if not met and name not in given})
    tempme, stop = "tempme" in active, "stop" in active
    of_tempme, of_stop = found.lora or found.merge or found.positions, found.spatial or found.temporal
    neither = not (of_tempme or of_stop)
    present = {
        "lora": tempme,
        "merge": tempme,
        "positions": tempme,
        "everywhere": tempme,
        "spatial": stop,
        "temporal": stop,
        "protect": tempme and stop,
        "group": (tempme and of_tempme) or (stop and of_stop) or (neither and bool(active)),
    }
    return Switches(**{field.name: getattr(found, field.name) and present[field.name] for field in fields(found)})
