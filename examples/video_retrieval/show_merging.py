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
    import torch
    from unified_model import load_unified_model

    from sensorium.families.video_retrieval.pictures import look_at, merging_picture
    from sensorium.families.video_retrieval.portable import read_values
    from sensorium.files import write_by_library

    config = read_values(checkpoint)[1]
    model = load_unified_model(checkpoint).eval()
    seen = look_at(video, model, config.data)
    with torch.inference_mode():
        states = model.trace(seen.frames[None], torch.ones(1, model.frames, dtype=torch.bool))
    picture = merging_picture(seen, states, model.plan)
    write_by_library(out, lambda path: picture.save(path, "PNG"))


if __name__ == "__main__":
    errors.shown(main)
