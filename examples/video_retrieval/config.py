"""The configuration of the video retrieval guide.

>>> from config import UnifiedModelConfig
>>> config = UnifiedModelConfig.from_json("configs/training_config.json")    # doctest: +SKIP
>>> config.training.batch_size                                               # doctest: +SKIP
8
"""

from __future__ import annotations

from sensorium.families.video_retrieval.guided import UnifiedModelConfig

__all__ = ["UnifiedModelConfig"]
