"""The model of the video retrieval guide.

from unified_model import create_unified_model, load_unified_model
model = create_unified_model("configs/training_config.json")                    # CLIP's weights, untrained parts
model = load_unified_model("checkpoints/unified_model/best_model.pth").eval()   # a trained one
"""

from __future__ import annotations

from pathlib import Path

from sensorium.engine import portable, session, settings
from sensorium.engine.stages import learnable
from sensorium.errors import CheckpointError
from sensorium.families.video_retrieval import FAMILY
from sensorium.families.video_retrieval.guided import UnifiedModelConfig
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel
from sensorium.families.video_retrieval.portable import read_values
from sensorium.families.video_retrieval.task import VideoRetrievalTask, active_parts, sections, stages

__all__ = ["UnifiedTempMeSTOPModel", "create_unified_model", "load_unified_model"]


def create_unified_model(
    config: str | Path | UnifiedModelConfig, model_class: type[UnifiedTempMeSTOPModel] = UnifiedTempMeSTOPModel
) -> UnifiedTempMeSTOPModel:
    """A model with CLIP's weights and parts that are not trained yet, on the CPU. CLIP's parameters need no gradient
    unless ``model.train_clip``. Active are the parts that are in the end of the training mode. Raises ConfigError."""
    if not isinstance(config, UnifiedModelConfig):
        config = UnifiedModelConfig.from_json(config)
    run = settings.resolve(FAMILY, "guide", config.settings())
    model_config, data = sections(run)
    model = model_class(model_config, data.datatype)
    model.active_parts = active_parts(model_config, stages(run)[-1].name)
    return model


def load_unified_model(
    path: str | Path, model_class: type[UnifiedTempMeSTOPModel] = UnifiedTempMeSTOPModel
) -> UnifiedTempMeSTOPModel:
    """The model of a ``.pth`` file that training wrote, on the CPU, with the parts active that were. Raises
    CheckpointError for any other file, and where CLIP's weights are not those that were trained upon."""
    values, config = read_values(Path(path))
    if values.model_class not in (None, model_class.__name__):
        raise CheckpointError(f"{path}: a model of class {values.model_class}; give model_class={values.model_class}")
    model = create_unified_model(config, model_class)
    task = VideoRetrievalTask(model, chunks=1)
    session.load_weights(task, learnable(task), portable.read_pt(Path(path)).content(), Path(path))
    model.active_parts = values.active_parts
    return model
