"""Pictures for training, decoded fast: large ones are kept once more as JPEG with a short side that suffices.

What a model sees does not depend on whether the copy is there: a large picture always goes through it.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path

from PIL import Image

from sensorium.data.media import load_image
from sensorium.errors import DataError, DiskError
from sensorium.files import new_file, open_file

QUALITY = 92
_log = logging.getLogger(__name__)
_LARGE = 1.25  # a picture whose short side is below this many times what is needed is read as it is


class Pictures:
    """Pictures with a short side of at least ``side``; ``folder``: of the copies, None keeps none.

    A copy lies under the picture's content (``key``), so that a changed picture has another one.
    """

    def __init__(self, side: int, folder: Path | None) -> None:
        self.side, self.folder = side, folder

    def load(self, path: Path, key: str) -> Image.Image:
        """RGB. Raises DataError naming file and reason."""
        copy = None if self.folder is None else self.folder / f"jpeg-{self.side}" / key[:2] / f"{key}.jpg"
        if copy is not None and copy.exists():
            try:
                return load_image(copy)
            except DataError:  # damaged: it is written anew
                pass
        picture, packed = self._packed(load_image(path))
        if packed is not None and copy is not None:
            self._keep(copy, packed)
        return picture

    def small(self, picture: Image.Image) -> Image.Image:
        """What ``load`` gives of a picture that is already decoded."""
        return self._packed(picture)[0]

    def _packed(self, picture: Image.Image) -> tuple[Image.Image, bytes | None]:
        """The picture as it is looked at, and the JPEG that it then comes from."""
        if min(picture.size) <= self.side * _LARGE:
            return picture, None
        scale = self.side / min(picture.size)
        size = (max(self.side, round(picture.width * scale)), max(self.side, round(picture.height * scale)))
        packed = io.BytesIO()
        picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0).save(packed, "JPEG", quality=QUALITY)
        with Image.open(io.BytesIO(packed.getvalue())) as small:
            return small.convert("RGB"), packed.getvalue()

    def _keep(self, copy: Path, data: bytes) -> None:
        try:
            with new_file(copy) as temporary, open_file(temporary, "wb") as file:
                file.write(data)
        except DiskError as error:
            _log.warning("%s; training goes on without small copies of pictures, and reads them anew each time", error)
            self.folder = None
