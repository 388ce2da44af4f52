"""Text-to-video retrieval with CLIP: token merging across time, prompts that follow change, or both in one pass.

After TempMe (Shen et al. 2025, arXiv 2409.01156) and the idea of STOP (Liu et al. 2025, arXiv 2503.15973), written from
the papers' descriptions. What differs is said in ``prompters.py`` and in the family's README.

Legend: B videos or texts, T frames, R pixels, L tokens of a text, F clips, N tokens of a clip, D width, E shared space.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium.errors import ConfigError, DataError
from sensorium.families.video_retrieval.clip import Block, Clip, Projected, open_clip
from sensorium.families.video_retrieval.config import PARTS, ModelConfig, Part, Switches, switches
from sensorium.families.video_retrieval.plan import BlockPlan, Plan, frames_words, plan_of, selected
from sensorium.families.video_retrieval.prompters import SpatialPrompter, TemporalPrompter
from sensorium.families.video_retrieval.state import (
    Slots,
    TokenState,
    begin,
    drop_slots,
    join,
    key_bias,
    merged,
    weighted_patches,
)
from sensorium.parts.attention import full_precision
from sensorium.parts.contrastive import Side, align, gather_rows, rank, world_size
from sensorium.parts.lora import FusedLora
from sensorium.parts.merging import Match, match

Group = Literal["tempme", "stop", "clip", "own"]
_GROUPS: tuple[Literal["tempme", "stop", "clip"], ...] = ("tempme", "stop", "clip")


@dataclass(frozen=True)
class VideoFeatures:
    """Unit vectors, float32: ``video`` ``[B, E]``, what retrieval compares; ``frames`` ``[B, T, E]``, each frame's CLS
    token; ``slots`` ``[B, E]``, the mean of the last slots, None where there are none."""

    video: Tensor
    frames: Tensor
    slots: Tensor | None


class TempMeParts(nn.Module):
    """What TempMe trains: LoRA in both towers, and a vector for each clip that is joined."""

    def __init__(self, config: ModelConfig, clip: Clip, plan: Plan, on: Switches) -> None:
        super().__init__()
        shape, rank_ = clip.shape, config.lora_rank
        depths = (shape.layers, shape.text_layers) if on.lora else (0, 0)
        self.vision, self.text = (
            nn.ModuleList(FusedLora(width, 3 * width, rank_) for _ in range(depth))
            for width, depth in zip((shape.width, shape.text_width), depths, strict=True)
        )
        joins = plan.joins if on.positions else ()
        self.positions = nn.ParameterDict(
            {str(step.block): nn.Parameter(torch.zeros(step.clips * step.group, shape.width)) for step in joins}
        )


class StopParts(nn.Module):
    """What STOP trains: one prompter for patches, and one for slots wherever clips are joined."""

    def __init__(self, config: ModelConfig, clip: Clip, plan: Plan, on: Switches) -> None:
        super().__init__()
        shape = clip.shape
        self.spatial: SpatialPrompter | None = None
        if on.spatial:
            count = selected(shape.patches, config.select_pct)
            self.spatial = SpatialPrompter(shape.width, config.width, shape.side, count, config.alpha)
        self.temporal = nn.ModuleDict(
            {
                str(step.block): TemporalPrompter(shape.width, config.width, config.slots, config.beta)
                for step in plan.blocks
                if step.new_slots
            }
        )


class UnifiedTempMeSTOPModel(nn.Module):
    """All six models: ``config.kind`` and its switches say which parts take part.

    ``clip``: towers to build upon; None opens those of the configuration. ``datatype`` gives frames and words where the
    configuration does not. Raises ConfigError for what cannot be built.

    Parameters lie under ``clip.``, ``tempme.`` and ``stop.``. Those of ``clip`` need no gradient unless
    ``train_clip``.
    """

    def __init__(self, config: ModelConfig, datatype: str = "msrvtt", clip: Clip | None = None) -> None:
        super().__init__()
        self.config = config
        self.frames, self.words = frames_words(config, datatype)
        self.clip = open_clip(config) if clip is None else clip
        if self.words > self.clip.shape.context:
            raise ConfigError(f"model.words {self.words}: {config.clip} reads {self.clip.shape.context} tokens at most")
        self.clip.requires_grad_(config.train_clip)
        self.clip.temperature.requires_grad_(config.loss.logit_scale == "learned")
        self.active_parts = PARTS
        # Each part has draws of its own, so that it begins alike whatever stands beside it.
        seeds = torch.randint(2**62, (2,), device="cpu").tolist()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds[0])
            self.tempme = TempMeParts(config, self.clip, self.plan, self.on)
            torch.manual_seed(seeds[1])
            self.stop = StopParts(config, self.clip, self.plan, self.on)
        self.lora_folded = False

    @property
    def active_parts(self) -> frozenset[Part]:
        """The parts that take part in the forward pass, of ``tempme`` and ``stop``; may be set at any time."""
        return self._active

    @active_parts.setter
    def active_parts(self, parts: Collection[Part]) -> None:
        unknown = set(parts) - set(PARTS)
        if unknown:
            raise ConfigError(f"active parts {sorted(unknown)}: there are {', '.join(PARTS)}")
        self._active = frozenset(parts)
        self.on = switches(self.config, self._active)
        self.plan = plan_of(self.config, self.clip.shape, self.frames, self.on)

    def group(self, name: str) -> Group:
        """Whose a parameter is, by the module that holds it; ``own``: of a class that builds upon this one."""
        for part in _GROUPS:
            if any(name == f"{part}.{inner}" for inner, _ in self.get_submodule(part).named_parameters()):
                return part
        return "own"

    # --- videos

    def encode_video(self, video: Tensor, mask: Tensor) -> VideoFeatures:
        """``video`` ``[B, T, 3, R, R]`` uint8, or normalised floats; ``mask`` ``[B, T]``, 0 for padded frames, of which
        nothing is seen. A video without any frame has a vector of zeros. Raises DataError for other shapes."""
        state = self._begin(video, mask, traced=False)
        for step, block in self._blocks():
            state = self._block(state, step, block)
        shared = self.clip.vision.shared
        frames = _unit(shared(state.cls.flatten(1, 2)))
        vector = _mean(frames, mask != 0)
        slots = None
        if state.slot_log is not None:
            slots = _mean(_unit(shared(state.slots.flatten(1, 2))), state.slot_log.exp().flatten(1))
        return VideoFeatures(vector, frames, slots)

    def trace(self, video: Tensor, mask: Tensor) -> tuple[TokenState, ...]:
        """The tokens before the first block and after each one, with ``source``: what pictures of merging are made
        from."""
        states = [self._begin(video, mask, traced=True)]
        for step, block in self._blocks():
            states.append(self._block(states[-1], step, block))
        return tuple(states)

    def _blocks(self) -> list[tuple[BlockPlan, Block]]:
        return [
            (step, cast("Block", block)) for step, block in zip(self.plan.blocks, self.clip.vision.blocks, strict=True)
        ]

    def _begin(self, video: Tensor, mask: Tensor, *, traced: bool) -> TokenState:
        """Every frame by itself, before the first block."""
        size = self.clip.shape.resolution
        if video.ndim != 5 or video.shape[1:] != (self.frames, 3, size, size) or mask.shape != video.shape[:2]:
            raise DataError(
                f"videos have shape {list(video.shape)} and their mask {list(mask.shape)}; this model reads "
                f"[B, {self.frames}, 3, {size}, {size}] and [B, {self.frames}]"
            )
        alive = mask != 0
        seen = video.masked_fill(~alive[:, :, None, None, None], 0)
        tokens = self.clip.vision.embed(seen.flatten(0, 1)).unflatten(0, alive.shape)
        return begin(tokens, alive, traced=traced)

    def _block(self, state: TokenState, step: BlockPlan, block: Block) -> TokenState:
        """One block, in the order of ``plan.py``."""
        if step.group > 1:
            state = self._join(state, step)
        elif step.cut_before:
            state = merged(state, self._match(state, state.patches.flatten(0, 1), step.cut_before))
        assert state.x.shape[1:3] == (step.clips, step.tokens)
        videos = len(state.x)
        found = block.project(state.x.flatten(0, 1), self._lora(self.tempme.vision, step.block))
        bias = key_bias(state).flatten(0, 1)[:, None, None] if step.biased else None
        state = replace(state, x=state.x + block.attend(found, bias).unflatten(0, (videos, -1)))
        if step.spatial:
            state = self._select(state, found, bias)
        if step.cut_after:
            keys = found[1].mean(dim=1)[:, state.fixed :]
            state = merged(state, self._match(state, keys, step.cut_after))
        return replace(state, x=state.x + block.mlp(state.x))

    def _match(self, state: TokenState, metric: Tensor, remove: int) -> Match:
        protect = self.config.protect if self.on.protect else 0.0
        return match(metric, weighted_patches(state), first=state.n_cls % 2, remove=remove, protect=protect)

    def _join(self, state: TokenState, step: BlockPlan) -> TokenState:
        """New slots, one sequence of neighbouring clips, matched as they come in, told apart, merged."""
        state = drop_slots(state)
        positions = self.tempme.positions[str(step.block)] if self.on.positions else None
        slots: Slots | None = None
        if step.new_slots:
            prompter = cast("TemporalPrompter", self.stop.temporal[str(step.block)])
            slots = prompter(state, step.group, positions)
        new = join(state, step.group, slots)
        found = self._match(new, new.patches.flatten(0, 1), step.cut_before) if step.cut_before else None
        if positions is not None:
            new = replace(new, x=new.x + _spread(positions, state, step.group, new.n_slot))
        return new if found is None else merged(new, found)

    def _select(self, state: TokenState, found: Projected, bias: Tensor | None) -> TokenState:
        """Prompts on the patches that the spatial prompter selects."""
        prompter = self.stop.spatial
        assert prompter is not None
        videos, clips, cls = len(state.x), state.x.shape[1], state.n_cls
        patches = state.patches.reshape(videos, clips * cls, -1, state.x.shape[-1])
        looked = _cls_attention(found, bias, cls, state.fixed).reshape(videos, clips * cls, -1)
        alive = state.size[:, :, :cls].flatten(1) != 0
        update, choice = prompter(patches, looked, alive)
        x = torch.cat([state.x[:, :, : state.fixed], state.patches + update.view_as(state.patches)], dim=2)
        chosen = choice.reshape(videos, clips, -1)
        return replace(state, x=x, saliency=torch.cat([chosen.new_zeros(videos, clips, cls), chosen], dim=2))

    def _lora(self, loras: nn.ModuleList, number: int) -> FusedLora | None:
        return cast("FusedLora", loras[number]) if self.on.lora and not self.lora_folded else None

    # --- texts

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors ``[B, E]``, float32; ``ids``, ``mask`` ``[B, L]``. Raises DataError for too long texts."""
        loras = cast("Sequence[FusedLora]", self.tempme.text) if self.on.lora and not self.lora_folded else None
        return _unit(self.clip.text(ids, mask, loras))

    # --- losses

    def loss_from_features(self, video: VideoFeatures, text: Tensor, groups: Tensor | None) -> dict[str, Tensor]:
        """``total_loss``, and of ``tempme_loss`` and ``stop_loss`` those that have a weight and a vector: symmetric
        InfoNCE of texts with the mean of the frames, and with the mean of the slots. Scalars with gradient; the total
        is a tensor of its own.

        ``groups`` ``[B]``: number of the video of each row, so that captions of one video do not push each other; None:
        every row has its own. In training the rows of all processes meet. Raises ConfigError where neither loss is on.
        """
        own = torch.arange(len(text), device=text.device) + rank() * len(text)
        if groups is None or self.config.loss.positives == "diagonal":
            groups = own
        weights = {"tempme_loss": self.config.loss.tempme_weight, "stop_loss": self.config.loss.stop_weight}
        vectors = {"tempme_loss": video.video, "stop_loss": video.slots}
        losses, total = {}, torch.zeros((), device=text.device)
        for name, vector in vectors.items():
            if weights[name] and vector is not None:
                losses[name] = self.contrast(vector, text, groups)
                total = total + weights[name] * losses[name]
        if not losses:
            raise ConfigError(
                "loss.tempme_weight is 0 and the model has no slots now: nothing can be learned; give it a weight"
            )
        return {"total_loss": total, **losses}

    def contrast(self, video: Tensor, text: Tensor, groups: Tensor) -> Tensor:
        """Symmetric InfoNCE of unit vectors ``[B, E]``, a scalar; rows of one group are right answers to each other."""
        everyone = (video, text, groups)
        if self.training and world_size() > 1:
            everyone = (gather_rows(video), gather_rows(text), gather_rows(groups))
        mine, all_ = (_sides(*rows) for rows in ((video, text, groups), everyone))
        return align(mine, all_, self.clip.temperature)

    def compute_training_loss(
        self,
        video_tensor: Tensor,
        video_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        groups: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The losses of pairs of a video and a text, see ``loss_from_features``; shapes as for ``encode_video`` and
        ``encode_text``. ``token_type_ids`` belongs to the signature alone: CLIP has none."""
        del token_type_ids
        video = self.encode_video(video_tensor, video_mask)
        return self.loss_from_features(video, self.encode_text(input_ids, attention_mask), groups)

    def forward(
        self,
        video_tensor: Tensor,
        video_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        groups: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``compute_training_loss``, also that of a class built upon this one that knows no groups."""
        given = (video_tensor, video_mask, input_ids, attention_mask, token_type_ids)
        return self.compute_training_loss(*given) if groups is None else self.compute_training_loss(*given, groups)

    # --- use

    @torch.no_grad()
    def fold_lora(self) -> None:
        """Add LoRA to the towers' weights, once and for all: the same vectors in less time, and no training."""
        if self.lora_folded or not self.on.lora:
            return
        for tower, loras in ((self.clip.vision, self.tempme.vision), (self.clip.text, self.tempme.text)):
            for block, lora in zip(tower.blocks, loras, strict=True):
                cast("Block", block).qkv.weight += cast("FusedLora", lora).weight()
        self.lora_folded = True


def _unit(x: Tensor) -> Tensor:
    return functional.normalize(full_precision(x), dim=-1)


def _mean(x_BNE: Tensor, weights_BN: Tensor) -> Tensor:
    """Unit vector along the weighted mean; zeros where no weight is."""
    return functional.normalize((x_BNE * weights_BN[..., None]).sum(dim=1), dim=-1)


def _sides(video: Tensor, text: Tensor, groups: Tensor) -> tuple[Side, Side]:
    present = torch.ones_like(groups, dtype=torch.bool)
    return Side(video, groups, present), Side(text, groups, present)


def _spread(positions_FD: Tensor, state: TokenState, group: int, slots: int) -> Tensor:
    """Each old clip's vector for all its tokens, in the order of the new clips: ``[F / g, N, D]``; 0 for slots."""
    joined = positions_FD.unflatten(0, (-1, group))[:, :, None]
    counts = (state.n_cls, state.patches.shape[2])
    cls, patches = (joined.expand(-1, -1, count, -1).flatten(1, 2) for count in counts)
    return torch.cat([cls, cls.new_zeros(len(cls), slots, cls.shape[-1]), patches], dim=1)


@torch.no_grad()
def _cls_attention(found: Projected, bias: Tensor | None, cls: int, fixed: int) -> Tensor:
    """How much each frame's CLS token looks at the patches of its frame, mean over heads: ``[F, C, P]``, all F."""
    q, k, _ = found
    scores = full_precision(q[:, :, :cls] @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias
    shares: Tensor = scores.softmax(dim=-1).mean(dim=1)[:, :, fixed:].unflatten(2, (cls, -1))
    return shares.diagonal(dim1=1, dim2=2).transpose(1, 2)
