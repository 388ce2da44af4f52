"""The frozen language model: a trunk that reads a history, and the prefix that it is given through its cache.

Legend: B batch, T text tokens, P prefix tokens, N soft tokens, L layers, H width, K key/value heads, D size of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache, CacheLayerMixin

from sensorium.errors import ConfigError
from sensorium.parts.encoders_base import LOAD_ERRORS, load_pretrained, quiet, reason

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_FULL = "full_attention"


@dataclass(frozen=True)
class TrunkShape:
    """What the adapter must know of a language model."""

    layers: int
    width: int
    heads: int  # of keys and values
    head_size: int


def read_config(folder: Path, name: str) -> PretrainedConfig:
    """Configuration of a causal language model. Raises ConfigError, also for one whose layers do not all attend to
    everything before them: a prefix would not be seen there."""
    from transformers import AutoConfig

    try:
        with quiet():
            found: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except LOAD_ERRORS as error:
        raise ConfigError(f"language model {name}: {folder} cannot be loaded ({reason(error)})") from error
    require_full_attention(found, name)
    return found


def require_full_attention(config: PretrainedConfig, name: str) -> None:
    """Raise ConfigError for sliding windows, recurrent layers and encoders."""
    kinds: Sequence[str] = getattr(config, "layer_types", None) or ()
    other = next((kind for kind in kinds if kind != _FULL), None)
    if other is None and not kinds and getattr(config, "sliding_window", None):
        other = "sliding_attention"
    if other is None and config.is_encoder_decoder:
        other = "an encoder"
    if other is not None:
        raise ConfigError(
            f"language model {name} ({config.model_type}) has {other}; every layer must have {_FULL}, as in Llama, "
            "Qwen 2 and 3 or SmolLM"
        )


def trunk_shape(config: PretrainedConfig) -> TrunkShape:
    """From the configuration alone: attributes of modules differ between architectures."""
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return TrunkShape(config.num_hidden_layers, config.hidden_size, shared, size)


def open_trunk(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model without its output head, frozen, in eval mode, on the CPU. Raises ConfigError."""
    from transformers import AutoModel

    read_config(folder, name)
    load: Any = AutoModel.from_pretrained
    found: PreTrainedModel = load_pretrained(load, folder, name, dtype=dtype, kind="language model")
    return found.eval().requires_grad_(False)


def new_trunk(folder: Path, name: str, dtype: torch.dtype) -> PreTrainedModel:
    """One of the same sizes with new weights, without its output head, frozen. Raises ConfigError."""
    from transformers import AutoModel

    with quiet():
        found: PreTrainedModel = AutoModel.from_config(read_config(folder, name), dtype=dtype)
    return found.eval().requires_grad_(False)


def open_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises ConfigError."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except LOAD_ERRORS as error:
        raise ConfigError(f"language model {name}: {folder} has no tokenizer ({reason(error)})") from error
    return found


class FixedLayer(CacheLayerMixin):
    """Keys and values of a prefix, ``[B, K, P, D]`` each. New ones are put behind them and not kept, so that a layer
    may be computed again."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to wait for."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """Prefix and new states, ``[B, K, P + T, D]``."""
        assert self.keys is not None
        assert self.values is not None
        keys, values = self.keys.to(key_states.dtype), self.values.to(value_states.dtype)
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)

    def get_seq_length(self) -> int:
        """P: text begins at this position."""
        assert self.keys is not None
        return self.keys.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys in all, and where they begin."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No bound."""
        return -1


def fixed_cache(states_L2BKPD: Tensor | Sequence[tuple[Tensor, Tensor]]) -> Cache:
    """A cache that holds these keys and values whatever is read with it."""
    return Cache(layers=[FixedLayer(keys, values) for keys, values in states_L2BKPD])


def decoder_layers(trunk: PreTrainedModel) -> nn.ModuleList:
    """The list of its layers. Raises ConfigError where there is none of that length."""
    count = trunk.config.num_hidden_layers
    for module in trunk.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ConfigError(f"language model of kind {trunk.config.model_type}: no list of its {count} layers was found")


def checkpoint_layers(trunk: PreTrainedModel) -> None:
    """Compute activations of each layer anew in the backward pass. The library's own switch would drop the cache,
    and with it the prefix, in train mode, and do nothing in eval mode, in which a frozen model is."""
    for layer in decoder_layers(trunk):
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def require_own_checkpointing(trunk: PreTrainedModel) -> None:
    """Raise ConfigError where the library's switch is on."""
    if any(getattr(layer, "gradient_checkpointing", False) for layer in decoder_layers(trunk)):
        raise ConfigError(
            "gradient checkpointing was switched on in the language model itself, which then drops the prefix; set "
            "model.gradient_checkpointing=true instead"
        )


def read_history(
    trunk: PreTrainedModel, prefix_L2KPD: Tensor | None, soft_NH: Tensor, ids_BT: Tensor, text_BT: Tensor
) -> Tensor:
    """Final hidden states ``[B, N, H]`` of the soft tokens behind each row's text.

    ``text_BT``: which of the ids are text; padding stands on the right. Without a prefix the text does not depend on
    anything that learns: it is read without gradient, and only the soft rows are differentiated.
    """
    require_own_checkpointing(trunk)
    if prefix_L2KPD is None or prefix_L2KPD.shape[3] == 0:
        return _behind_text(trunk, soft_NH, ids_BT, text_BT)
    rows, count = len(ids_BT), len(soft_NH)
    lengths_B = text_BT.sum(1)
    width = ids_BT.shape[1] + count
    words_BTH = trunk.get_input_embeddings()(ids_BT)
    embedded = torch.cat([words_BTH, words_BTH.new_zeros(rows, count, words_BTH.shape[2])], dim=1)
    places_BN = lengths_B[:, None] + torch.arange(count, device=ids_BT.device)
    row = torch.arange(rows, device=ids_BT.device)[:, None]
    embedded = embedded.index_put((row, places_BN), soft_NH.to(words_BTH.dtype).expand(rows, -1, -1))
    seen = torch.arange(width, device=ids_BT.device) < (lengths_B + count)[:, None]
    prefix = prefix_L2KPD[:, :, None].expand(-1, -1, rows, -1, -1, -1).to(words_BTH.dtype)
    ahead = seen.new_ones(rows, prefix.shape[4])
    hidden_BTH = run(trunk, embedded, torch.cat([ahead, seen], dim=1), fixed_cache([(k, v) for k, v in prefix]))
    return hidden_BTH[row, places_BN]


def _behind_text(trunk: PreTrainedModel, soft_NH: Tensor, ids_BT: Tensor, text_BT: Tensor) -> Tensor:
    from transformers import DynamicCache

    rows, count = len(ids_BT), len(soft_NH)
    read = DynamicCache(config=trunk.config)
    with torch.no_grad():
        words_BTH = trunk.get_input_embeddings()(ids_BT)
        run(trunk, words_BTH, text_BT, read)
    states = [(layer.keys.detach(), layer.values.detach()) for layer in read.layers]
    embedded = soft_NH.to(words_BTH.dtype).expand(rows, -1, -1)
    seen = torch.cat([text_BT, text_BT.new_ones(rows, count)], dim=1)
    places_BN = text_BT.sum(1)[:, None] + torch.arange(count, device=ids_BT.device)
    return run(trunk, embedded, seen, fixed_cache(states), places_BN)


def run(
    trunk: PreTrainedModel, embedded_BTH: Tensor, seen_BS: Tensor, cache: Cache, places_BT: Tensor | None = None
) -> Tensor:
    """Hidden states behind the final norm. ``seen_BS``: also of what the cache holds, which comes first; positions go
    on behind that unless ``places_BT`` are given."""
    given = {} if places_BT is None else {"position_ids": places_BT}
    found = trunk(
        inputs_embeds=embedded_BTH, attention_mask=seen_BS.long(), past_key_values=cache, use_cache=True, **given
    )
    hidden: Tensor = found.last_hidden_state
    return hidden


def own_states(trunk: PreTrainedModel, ids_P: Tensor) -> Tensor:
    """Keys and values ``[L, 2, K, P, D]`` that the model itself has for these tokens at the start of a text."""
    from transformers import DynamicCache

    cache = DynamicCache(config=trunk.config)
    with torch.no_grad():
        trunk(input_ids=ids_P[None], past_key_values=cache, use_cache=True)
        return torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]).float()
