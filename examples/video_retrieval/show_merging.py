"""Draw which patches of a video a trained model merges.

    python show_merging.py --checkpoint checkpoints/unified_model/best_model.pth --video clip.mp4 --out merge.png

Rows are frames; columns the input, the patches that STOP selects, and what the blocks leave of TempMe's merging.
"""

from __future__ import annotations

from pathlib import Path

from sensorium import errors, guide


def parser() -> guide.Parser:
    flags = guide.Parser(__doc__ or "")
    flags.flag("--checkpoint", Path, None, ".pth file that training wrote")
    flags.flag("--video", Path, None, "video to look at")
    flags.flag("--out", Path, "merge.png", "PNG to write")
    return flags


def main() -> None:
    given = parser().given()
    for name in ("checkpoint", "video"):
        if name not in given:
            raise errors.ConfigError(f"--{name} is missing; --help lists the flags")
    out: Path = given.get("out", Path("merge.png"))
    if out.suffix != ".png":
        raise errors.ConfigError(f"--out {out}: name a .png")
    draw(given["checkpoint"], given["video"], out)
    print(f"{out}: {given['video'].name}")


def draw(checkpoint: Path, video: Path, out: Path) -> None:
    """Raises CheckpointError, DataError, DiskError."""
    from unified_model import load_unified_model

    from sensorium.data.frames import DirectFrames, Look, Stretch
    from sensorium.engine import settings
    from sensorium.families.video_retrieval import FAMILY
    from sensorium.families.video_retrieval.pictures import look_at, traced
    from sensorium.families.video_retrieval.portable import read_values
    from sensorium.families.video_retrieval.task import sections
    from sensorium.files import write_by_library

    model = load_unified_model(checkpoint).eval()
    _, data = sections(settings.resolve(FAMILY, "guide", read_values(checkpoint)[1].settings()))
    reader = DirectFrames(Look(model.clip.shape.resolution, data.cache_fps, data.cache_max_frames))
    picture = traced(look_at(Stretch(video), reader, data.sampling, model.frames), model)
    write_by_library(out, lambda path: picture.save(path, "PNG"))


if __name__ == "__main__":
    errors.shown(main)
