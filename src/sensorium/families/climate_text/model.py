"""ClimateTextFusion: a language model that reads fields.

Legend: B rows, S text positions, N climate tokens, E width of the language model, F of the fusion, P target tokens, V
vocabulary.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sensorium.errors import ConfigError, DataError
from sensorium.families.climate_text.config import ModelConfig
from sensorium.families.climate_text.encoders import (
    Encoder,
    FieldFacts,
    Perceiver,
    checkpointed_layers,
    open_encoder,
    trains_encoder,
)
from sensorium.families.climate_text.fusion import (
    Absent,
    Added,
    FusionBlock,
    Holder,
    Prefix,
    Projector,
    Running,
    fusion_width,
    places,
)
from sensorium.families.climate_text.llm import LoraUpdates, checkpoint_layers, decoder_layers, open_llm
from sensorium.families.climate_text.objectives import Contrast, masked_mean, regression
from sensorium.families.climate_text.padding import left_padded, prompt_mask, right_padded
from sensorium.parts.attention import full_precision

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel
    from transformers.generation.streamers import BaseStreamer

    from sensorium.families.climate_text.use import Answers


@dataclass(frozen=True)
class Predictions:
    """What the model says of every target token of a batch: ``logits`` ``[P, V]``, ``labels`` and ``rows`` ``[P]``.

    ``contrast``: the contrastive loss, a scalar, where ``contrastive_weight`` is not 0.
    """

    logits: Tensor
    labels: Tensor
    rows: Tensor
    contrast: Tensor | None = None

    def losses(self) -> Tensor:
        """Negative log-likelihood of each token, ``[P]`` float32."""
        return functional.cross_entropy(full_precision(self.logits), self.labels, reduction="none")

    def per_row(self, count: int) -> Tensor:
        """Sums over the tokens of each of ``count`` rows, ``[B]``: how unlikely a target is."""
        return torch.zeros(count, device=self.rows.device).index_add(0, self.rows, self.losses())


@dataclass(frozen=True)
class Decoding:
    """How text is made. ``end_id``: the token that ends it; ``pad_id``: what stands behind the end."""

    end_id: int
    pad_id: int
    max_new_tokens: int = 128
    beams: int = 1
    cache: bool = True


class ClimateTextFusion(nn.Module):
    """Encoder, projector, fusion and language model; what is frozen stays in eval mode.

    ``llm``, ``encoder``: to build upon; None opens those of the configuration, the encoder only where batches do not
    hold tokens already (``facts.token_width``). ``dtype``: of frozen weights. Raises ConfigError.

    A batch holds ``input_ids``, ``attention_mask``, ``target_mask`` ``[B, S]`` with padding on the right,
    ``field_given`` ``[B]``, and either a field with what belongs to it (``PrithviEncoder.encode``) or
    ``climate_tokens`` ``[B, N, D]`` with ``token_lat`` and ``token_lon`` ``[B, N]``, and ``token_mask`` ``[B, N]``
    where not all of them count.
    """

    def __init__(
        self,
        model: ModelConfig,
        facts: FieldFacts,
        *,
        llm: PreTrainedModel | None = None,
        encoder: Encoder | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config, self.facts, self.dtype = model, facts, dtype
        self.llm = open_llm(model, dtype) if llm is None else llm.requires_grad_(not model.freeze_llm)
        self.encoder: nn.Module | None = None
        if encoder is not None or facts.token_width is None:
            self.attach_encoder(encoder)
        token_width = cast("Encoder", self.encoder).width if facts.token_width is None else facts.token_width
        text_width = int(self.llm.config.get_text_config().hidden_size)
        self.width = fusion_width(model.fusion_width, text_width, model.fusion_heads)
        self.projector = Projector(token_width, self.width)
        self.resampler: Perceiver | None = None
        if model.resampler == "perceiver":
            self.resampler = Perceiver(self.width, model.fusion_heads, model.resampler_queries, model.resampler_layers)
        self.lora = LoraUpdates(self.llm, model.lora) if model.lora.rank else None
        self.contrast = Contrast(self.width, text_width) if model.contrastive_weight else None
        self.answers: Answers | None = None  # of a trained model that was opened: its texts, channels and scalers
        self._holder = Holder()
        self._build_fusion(text_width)
        self.train(self.training)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        llm: PreTrainedModel | None = None,
        encoder: Encoder | None = None,
        allow_other_base: bool = False,
    ) -> ClimateTextFusion:
        """A trained model in eval mode: of a folder of one epoch, of the folder of all epochs (the best one), of a run
        or of an export (``sensorium/stored.py``).

        Strict: every trained weight is there, and none besides; frozen parts come from where training had them, and
        must be the same (``allow_other_base``: need not). ``llm``, ``encoder``: to take instead of opening them.
        ``dtype``: None as in training. Raises CheckpointError, ConfigError.
        """
        from sensorium.families.climate_text.pretrained import open_model

        return open_model(Path(path), dtype, llm, encoder, allow_other_base=allow_other_base).to(device)

    def answer(
        self,
        field: Tensor | np.ndarray[Any, Any] | str | Path | None,
        question: str,
        lat: Sequence[float] | None = None,
        lon: Sequence[float] | None = None,
        time: str | Sequence[str] | None = None,
    ) -> str:
        """What a model that was opened by ``from_pretrained`` says of a field ``[T, C, H, W]``, or a file, see
        ``use.Answers``. Raises ConfigError for one that was not."""
        if self.answers is None:
            raise ConfigError("this model knows no texts and channels; ClimateTextFusion.from_pretrained opens one")
        return self.answers.answer(question, field, lat, lon, time)

    def _build_fusion(self, text_width: int) -> None:
        """The modules of the mode, and the hooks through which they take part."""
        model = self.config
        layers = decoder_layers(self.llm)
        embeddings = cast("nn.Embedding", self.llm.get_input_embeddings())
        self.blocks = nn.ModuleList()
        self.absent = None if model.fusion_mode == "concatenate" else Absent(self.width)
        self.prefix: Prefix | None = None
        self.added: Added | None = None
        if model.fusion_mode == "cross_attention":
            for number, place in enumerate(places(len(layers), model.num_fusion_layers)):
                self.blocks.append(FusionBlock(text_width, self.width, model.fusion_heads, model.fusion_dropout))
                hook = functools.partial(self._before_layer, number)
                layers[place].register_forward_pre_hook(hook, with_kwargs=True)
        elif model.fusion_mode == "concatenate":
            self.prefix = Prefix(self.width, embeddings.embedding_dim)
            embeddings.register_forward_hook(self._behind_embeddings)
        else:
            self.added = Added(self.width, model.fusion_heads, embeddings.embedding_dim)
            embeddings.register_forward_hook(self._behind_embeddings)
        head = self.llm.get_output_embeddings()
        assert head is not None
        head.register_forward_pre_hook(self._before_head)
        checkpoint_layers(layers, checkpointed_layers(model, len(layers)))
        self._checkpointed = set(checkpointed_layers(model, len(self.blocks)))

    def attach_encoder(self, encoder: Encoder | None = None) -> None:
        """Take this encoder, or open the configuration's: for fields where batches held tokens until now."""
        found = open_encoder(self.config, self.facts, self.dtype) if encoder is None else encoder
        assert isinstance(found, nn.Module)
        if self.facts.token_width not in (None, found.width):
            raise ConfigError(
                f"the encoder makes tokens of width {found.width}; this model was built for {self.facts.token_width}"
            )
        self.encoder = found.requires_grad_(trains_encoder(self.config)).to(next(self.llm.parameters()).device)
        self.train(self.training)

    def train(self, mode: bool = True) -> ClimateTextFusion:
        """What is frozen stays in eval mode."""
        super().train(mode)
        if self.config.freeze_llm:
            self.llm.eval()
        if self.encoder is not None and not trains_encoder(self.config):
            self.encoder.eval()
        return self

    # --- climate

    def climate(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Projected tokens ``[B, N, F]``, or the resampler's queries, and which of them count, ``[B, N]`` bool."""
        tokens, lat, lon = self._tokens(batch)
        x = self.projector(tokens, lat, lon)
        mask = batch.get("token_mask")
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        if self.resampler is None:
            return x, mask
        x = self.resampler(x, mask)
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)

    def _tokens(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        if "climate_tokens" in batch:
            return batch["climate_tokens"], batch["token_lat"], batch["token_lon"]
        if self.encoder is None:
            raise DataError("the batch holds fields, and this model was built for tokens; call attach_encoder() first")
        return cast("Encoder", self.encoder).encode(batch)

    def _begin(self, batch: Mapping[str, Tensor], prompt_BS: Tensor) -> Running:
        climate, mask = self.climate(batch)
        given = batch["field_given"].bool()
        if self.absent is not None:
            climate, mask = self.absent(climate, mask, given)
        added = None if self.added is None else self.added(climate, mask)
        prefix = None if self.prefix is None else self.prefix(climate)
        return Running(climate, mask, given, prompt_BS, prefix=prefix, added=added)

    # --- hooks; each does nothing outside of a pass of ours

    def _before_layer(
        self, number: int, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        del layer
        running = self._holder.running
        if running is None:
            return None
        text = args[0] if args else named["hidden_states"]
        block = self.blocks[number]
        given = (text, (running.climate, running.mask), running.prompt, running.kept.get(number))
        if number in self._checkpointed and torch.is_grad_enabled():
            found = checkpoint(block, *given, use_reentrant=False)
        else:
            found = block(*given)
        if running.shares is not None:
            reads = cast("FusionBlock", block).text_reads
            running.shares.append(reads.shares(text.to(reads.out.weight.dtype), found[2]))
        text, running.climate, running.kept[number] = found
        return ((text, *args[1:]), named) if args else (args, {**named, "hidden_states": text})

    def _behind_embeddings(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        del module, inputs
        running = self._holder.running
        if running is None:
            return output
        if running.added is not None:
            return output + running.added[:, None].to(output.dtype)
        if running.prefix is None or output.shape[1] <= running.prefix.shape[1]:  # one word, after the cached ones
            return output
        return torch.cat([running.prefix.to(output.dtype), output[:, running.prefix.shape[1] :]], dim=1)

    def _before_head(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        del module
        running = self._holder.running
        if running is None or running.chosen is None:
            return None
        return (inputs[0][running.chosen][None], *inputs[1:])

    # --- passes

    def forward(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Logits of the target tokens alone, each from the position before it. Raises DataError where a row has
        none."""
        ids, target = batch["input_ids"], batch["target_mask"]
        if not bool(target[:, 1:].any(dim=1).all()):
            raise DataError("a row of the batch has no target token behind its first one: nothing to learn from it")
        running = self._begin(batch, prompt_mask(batch))
        contrast = self._contrast(batch, running)
        chosen = functional.pad(target[:, 1:], (0, 1))
        running.chosen = chosen
        logits = self._run(batch, running).logits[0]
        rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
        return Predictions(logits, ids[:, 1:][target[:, 1:]], rows[chosen], contrast)

    def _contrast(self, batch: Mapping[str, Tensor], running: Running) -> Tensor | None:
        if self.contrast is None:
            return None
        climate = masked_mean(running.climate, running.mask)
        found: Tensor = self.contrast(
            climate, self.target_vectors(batch), batch["field_given"].bool(), batch.get("groups")
        )
        return found

    @torch.no_grad()
    def target_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the language model alone makes of the targets, read without prompt and climate: means ``[B, E]``."""
        ids, mask = right_padded(batch["input_ids"], batch["target_mask"].bool(), 0)
        hidden: Tensor = self.llm.base_model(ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        return masked_mean(hidden, mask)

    def regression(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Losses of the published objective, ``[B]``: the mean state of the prompt that saw the field against that of
        the target."""
        hidden, _ = self.features(batch)
        return regression(masked_mean(hidden, prompt_mask(batch)), self.target_vectors(batch))

    @torch.no_grad()
    def attention(self, batch: Mapping[str, Tensor]) -> Tensor:
        """How much the target's words look at each climate token, ``[B, N]``: mean over words and blocks. Raises
        ConfigError for modes without blocks."""
        if not self.blocks:
            raise ConfigError(f"fusion_mode {self.config.fusion_mode} has no attention to climate of its own")
        running = self._begin(batch, prompt_mask(batch))
        running.shares = []
        self._run(batch, running)
        weight = batch["target_mask"].float()[..., None]
        return (torch.stack(running.shares).mean(dim=0) * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits at every position of the text, ``[B, S, V]``."""
        running = self._begin(batch, prompt_mask(batch))
        found: Tensor = self._run(batch, running).logits
        return found[:, -batch["input_ids"].shape[1] :]

    def features(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden states that know the field, ``[B, S, E]``, and their mean over the text, ``[B, E]`` float32."""
        hidden = self.hidden(batch)
        return hidden, masked_mean(hidden, batch["attention_mask"])

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The first of ``features`` alone."""
        running = self._begin(batch, prompt_mask(batch))
        given = self._given(batch, running)
        with self._holder.holding(running):
            hidden: Tensor = self.llm.base_model(**given, use_cache=False).last_hidden_state
        return hidden[:, -batch["input_ids"].shape[1] :]

    def _run(self, batch: Mapping[str, Tensor], running: Running) -> Any:
        given = self._given(batch, running)
        with self._holder.holding(running):
            return self.llm(**given, use_cache=False)

    def _given(self, batch: Mapping[str, Tensor], running: Running) -> dict[str, Tensor]:
        """What the language model is called with; with a prefix, places are counted over what is not masked."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if running.prefix is None:
            return {"input_ids": ids, "attention_mask": mask.long()}
        ids, mask = self._prefixed(ids, mask, running)
        if running.chosen is not None:
            running.chosen = functional.pad(running.chosen, (running.prefix.shape[1], 0))
        given = {"input_ids": ids, "attention_mask": mask.long()}
        if "position_ids" in inspect.signature(self.llm.forward).parameters:
            given["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp_min(0)
        return given

    def _prefixed(self, ids_BS: Tensor, mask_BS: Tensor, running: Running) -> tuple[Tensor, Tensor]:
        """Room for the prefix; masked where a row has no climate."""
        assert running.prefix is not None
        seen = functional.pad(running.mask, (1, 1), value=True) & running.given[:, None]
        return functional.pad(ids_BS, (seen.shape[1], 0)), torch.cat([seen, mask_BS.bool()], dim=1)

    @torch.no_grad()
    def generate(self, batch: Mapping[str, Tensor], decoding: Decoding, streamer: BaseStreamer | None = None) -> Tensor:
        """Token numbers ``[B, at most max_new_tokens]`` that follow the prompts, greedily or by beams; targets in the
        batch are not looked at. ``streamer``: of transformers, is given the tokens of a single row one by one."""
        from transformers import GenerationConfig

        ids, mask = left_padded(batch["input_ids"], prompt_mask(batch), decoding.pad_id)
        running = self._begin(batch, mask)
        if running.prefix is not None:
            ids, mask = self._prefixed(ids, mask, running)
        settings = GenerationConfig(
            do_sample=False,
            num_beams=decoding.beams,
            max_new_tokens=decoding.max_new_tokens,
            use_cache=decoding.cache,
            eos_token_id=decoding.end_id,
            pad_token_id=decoding.pad_id,
        )
        with self._holder.holding(running.repeated(decoding.beams)):
            llm: Any = self.llm
            found: Tensor = llm.generate(
                input_ids=ids, attention_mask=mask.long(), generation_config=settings, streamer=streamer
            )
        return found[:, ids.shape[1] :]
