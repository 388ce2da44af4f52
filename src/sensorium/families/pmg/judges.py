"""Networks that judge pictures, from weights that somebody has downloaded: never another quantity under their names.

```
WEIGHTS_DIR/
    vgg16-397923af.pth                       torchvision's VGG16          lpips_*
    vgg.pth                                  LPIPS 0.1: lpips/weights/v0.1/vgg.pth of the package `lpips`
    pt_inception-2015-12-05-6726825d.pth     Inception of pytorch-fid     fid
    sac+logos+ava1-l14-linearMSE.pth         LAION's aesthetic head       laion_aesthetic
    clip-vit-large-patch14/                  OpenAI's CLIP for that head
```
Every file is known by its sha256; for those whose publisher gives its beginning in the file's name, by that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from sensorium.errors import ConfigError
from sensorium.families.pmg.clip import Clip
from sensorium.families.pmg.folders import file_digest
from sensorium.metrics.inception import Inception
from sensorium.metrics.lpips import Lpips

VGG, HEAD, INCEPTION = "vgg16-397923af.pth", "vgg.pth", "pt_inception-2015-12-05-6726825d.pth"
AESTHETIC, LARGE = "sac+logos+ava1-l14-linearMSE.pth", "clip-vit-large-patch14"
_LARGE_WEIGHTS = f"{LARGE}/model.safetensors"
SHA256: dict[str, str] = {  # or its beginning
    VGG: "397923af",
    HEAD: "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    INCEPTION: "6726825d",
    AESTHETIC: "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    _LARGE_WEIGHTS: "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
}
_AESTHETIC_LAYERS = (0, 2, 4, 6, 7)
NetT = TypeVar("NetT", bound=nn.Module)


@dataclass(frozen=True)
class Missing:
    """Why a judge is not there."""

    reason: str


class Aesthetic:
    """LAION's predictor (2022): mean rating of a picture, about 1 to 10, from the unit vector of CLIP ViT-L/14."""

    def __init__(self, weights: Mapping[str, Tensor], clip: Clip) -> None:
        self.clip = clip
        self._layers = [(weights[f"layers.{n}.weight"], weights[f"layers.{n}.bias"]) for n in _AESTHETIC_LAYERS]

    def rate(self, vectors_Nd: Tensor) -> Tensor:
        """``[N]``; there is nothing between the layers but dropout, which is off."""
        found = vectors_Nd.float()
        for weight, bias in self._layers:
            found = nn.functional.linear(found, weight, bias)
        return found[:, 0]


@dataclass(frozen=True)
class Judges:
    """Those that are there, on one device."""

    clip: Clip | Missing
    lpips: Lpips | Missing
    inception: Inception | Missing
    aesthetic: Aesthetic | Missing

    def identities(self) -> dict[str, str]:
        """By what those that are there are known."""
        found = {} if isinstance(self.clip, Missing) else {"clip": f"{self.clip.name} {self.clip.digest}"}
        given = {HEAD: self.lpips, VGG: self.lpips, INCEPTION: self.inception, AESTHETIC: self.aesthetic}
        return found | {name: SHA256[name] for name, judge in given.items() if not isinstance(judge, Missing)}


def open_judges(clip: str, weights_dir: str | None, device: str, *, needs_clip: bool) -> Judges:
    """All that the files allow. ``needs_clip``: that ``clip`` cannot be opened is an error, not a reason.

    Raises ConfigError for a folder that is not there, and for files that are not what their names say.
    """
    if weights_dir is not None and not Path(weights_dir).expanduser().is_dir():
        raise ConfigError(f"{weights_dir}: no such folder of weights (weights_dir); leave it out to do without them")
    folder = None if weights_dir is None else Path(weights_dir).expanduser()
    lpips, inception, aesthetic = (
        _absent(folder, *names) for names in ((VGG, HEAD), (INCEPTION,), (AESTHETIC, _LARGE_WEIGHTS))
    )
    return Judges(
        _clip(clip, device, needs_clip),
        lpips or _on(Lpips.of(_weights(folder, VGG), _weights(folder, HEAD)), device),
        inception or _on(Inception.of(_weights(folder, INCEPTION)), device),
        aesthetic or _aesthetic(folder, device),
    )


def _clip(name: str, device: str, needed: bool) -> Clip | Missing:
    try:
        return Clip.open(name, device)
    except ConfigError as error:
        if needed:
            raise
        return Missing(str(error).splitlines()[0])


def _on(network: NetT, device: str) -> NetT:
    return network.to(device)


def _absent(folder: Path | None, *names: str) -> Missing | None:
    if folder is None:
        return Missing(f"needs {' and '.join(names)} in weights_dir, which is not given")
    gone = [name for name in names if not (folder / name).exists()]
    return Missing(f"{folder} has no {' and no '.join(gone)}") if gone else None


def _weights(folder: Path | None, name: str) -> dict[str, Tensor]:
    """Raises ConfigError for a file of other bytes, before anything of it is read."""
    assert folder is not None
    _prove(folder / name, SHA256[name])
    found: dict[str, Tensor] = torch.load(folder / name, map_location="cpu", weights_only=True)
    return found


def _prove(path: Path, wanted: str) -> None:
    digest = file_digest(path)
    if not digest.startswith(wanted):
        raise ConfigError(f"{path}: its sha256 begins with {digest[:8]}, not {wanted[:8]}; download it again")


def _aesthetic(folder: Path | None, device: str) -> Aesthetic:
    assert folder is not None
    _prove(folder / _LARGE_WEIGHTS, SHA256[_LARGE_WEIGHTS])
    return Aesthetic(_weights(folder, AESTHETIC), Clip.open(str(folder / LARGE), device))
