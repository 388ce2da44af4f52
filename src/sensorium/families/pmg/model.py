"""What learns: soft tokens, prefix and mapping, between a frozen language model and a frozen Stable Diffusion.

Legend: B batch, T text tokens, N soft tokens (n_img), P prefix tokens (n_pre), L layers, H width of the language model,
K key/value heads, D size of a head, d width of what the UNet is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sensorium.families.pmg.language import TrunkShape, own_states, read_history

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Init = Literal["activations", "embedding_std", "normal"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of an adapter; ``soft`` n_img, ``prefix`` n_pre, ``told`` width of what the UNet is told."""

    layers: int
    width: int
    heads: int
    head_size: int
    told: int
    soft: int
    prefix: int

    @classmethod
    def of(cls, trunk: TrunkShape, told: int, soft: int, prefix: int) -> Sizes:
        """Those between a language model and a UNet."""
        return cls(trunk.layers, trunk.width, trunk.heads, trunk.head_size, told, soft, prefix)

    def counts(self) -> dict[str, int]:
        """Numbers that learn, by part."""
        return {
            "image prompt": self.soft * self.width,
            "prefix": self.prefix * self.layers * 2 * self.heads * self.head_size,
            "mapping": (self.width * self.told + self.told) if self.soft else 0,
        }

    def plain(self) -> dict[str, int]:
        """To be stored."""
        return asdict(self)


class PMGAdapter(nn.Module):
    """``image_prompt_NH``, ``prefix_L2KPD`` and ``mapping``, all float32. Without soft tokens there is nothing."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.described: Mapping[str, Any] = {}  # of the file that it was read from (adapter_files.py)
        self.image_prompt_NH: nn.Parameter | None = None
        self.prefix_L2KPD: nn.Parameter | None = None
        self.mapping: nn.Linear | None = None
        if sizes.soft:
            self.image_prompt_NH = nn.Parameter(torch.zeros(sizes.soft, sizes.width))
            self.mapping = nn.Linear(sizes.width, sizes.told)
        self.mean_H: Tensor | None
        self.spread_H: Tensor | None
        self.register_buffer("mean_H", None)
        self.register_buffer("spread_H", None)
        if sizes.soft and sizes.prefix:
            shape = (sizes.layers, 2, sizes.heads, sizes.prefix, sizes.head_size)
            self.prefix_L2KPD = nn.Parameter(torch.zeros(shape))

    def forward(self, trunk: PreTrainedModel, ids_BT: Tensor, text_BT: Tensor) -> Tensor:
        """S, ``[B, N, d]`` float32: what the histories ``ids_BT`` say of their users' taste."""
        if self.image_prompt_NH is None or self.mapping is None:
            return torch.zeros(len(ids_BT), 0, self.sizes.told, device=ids_BT.device)
        hidden_BNH = read_history(trunk, self.prefix_L2KPD, self.image_prompt_NH, ids_BT, text_BT)
        with torch.autocast(hidden_BNH.device.type, enabled=False):
            found: Tensor = self.mapping(self._standard(hidden_BNH.float()))
        return found

    def _standard(self, states: Tensor) -> Tensor:
        if self.mean_H is None or self.spread_H is None:
            return states
        return (states - self.mean_H.float()) / self.spread_H.float()

    def make_standard(self) -> None:
        """Let the mapping begin at zero and learn in states that ``standardise`` will bring to mean 0 and spread 1.

        Most of a state is the same whatever was read: of SmolLM2's, 54 long, histories change 3, and one number is 41.
        What AdamW learns first from such states is the same for all users, and it limits the rate (docs/log.md).
        """
        assert self.mapping is not None
        nn.init.zeros_(self.mapping.weight)
        nn.init.zeros_(self.mapping.bias)
        self.mean_H, self.spread_H = torch.zeros(self.sizes.width), torch.ones(self.sizes.width)

    @torch.no_grad()
    def standardise(self, states_RH: Tensor) -> None:
        """Take mean and spread of the states of R soft tokens. Numbers that hardly differ keep a tenth of the usual
        spread: what little they do would count as much as what the others say."""
        assert self.mean_H is not None
        assert self.spread_H is not None
        spread_H, self.mean_H[:] = states_RH.float().std(0, unbiased=False), states_RH.float().mean(0)
        self.spread_H[:] = spread_H.clamp_min(float(spread_H.square().mean().sqrt()) / 10)

    @property
    def is_standard(self) -> bool:
        """Whether ``standardise`` has been called, in this run or before."""
        return self.mean_H is not None and bool(self.mean_H.any())

    @torch.no_grad()
    def initialise(self, trunk: PreTrainedModel, how: Init, preface_P: Tensor) -> None:
        """First values, drawn from torch's generator. ``preface_P``: n_pre tokens whose keys and values the prefix
        takes with ``activations``."""
        if self.image_prompt_NH is None:
            return
        table = trunk.get_input_embeddings().weight
        deviation = 1.0 if how == "normal" else float(table.float().std())
        nn.init.normal_(self.image_prompt_NH, std=deviation)
        if how == "activations":
            self.image_prompt_NH += table.float().mean(0)
        if self.prefix_L2KPD is None:
            return
        if how == "activations":
            self.prefix_L2KPD.copy_(own_states(trunk, preface_P))
        else:
            nn.init.normal_(self.prefix_L2KPD, std=deviation)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PMGAdapter:
        """The trained adapter of a run, or of a folder that ``save_pretrained`` or a run's export wrote, on the CPU.

        Raises CheckpointError: nothing there, damaged, or tensors that do not fit. Whether a base model is the one it
        was trained on is found when it is put to use (``use.open_pictures``).
        """
        from sensorium.families.pmg.adapter_files import read_adapter

        return read_adapter(Path(folder))

    @classmethod
    def from_upstream(
        cls,
        file: str | Path,
        model: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        precision: str = "bf16",
    ) -> PMGAdapter:
        """The adapter of a published ``.pth`` file, of which nothing but tensors is read.

        ``model`` and ``data``: settings of those sections that say what it was trained with, ``{"llm": …,
        "stable_diffusion": …, "conditioning": "soft_only"}``; numbers of tokens are the file's. ``precision``: of the
        base models, which are opened, so that ``save_pretrained`` can say which they are. Raises CheckpointError and
        ConfigError.
        """
        from sensorium.families.pmg.upstream import read_upstream

        return read_upstream(Path(file), model or {}, data or {}, precision)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors``, ``config.json`` and ``README.md`` into a new folder. Raises CheckpointError for
        an adapter that was never trained: nobody could say for which base models it is."""
        from sensorium.families.pmg.adapter_files import save_adapter

        save_adapter(self, Path(folder))
