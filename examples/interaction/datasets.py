"""The data sets of the interaction guide.

>>> from datasets import look, read                    # doctest: +SKIP
>>> look(Path("data"))                                 # doctest: +SKIP
>>> read("clotho", Path("data/clotho")).items[0].text  # doctest: +SKIP

``look``: which of them lie below a folder; ``read``: one of them as items with text, picture and sound.
"""

from __future__ import annotations

from sensorium.data.items import DataSet, Item
from sensorium.data.readers import read
from sensorium.families.interaction.guided import SETS, Place, look

__all__ = ["SETS", "DataSet", "Item", "Place", "look", "read"]
