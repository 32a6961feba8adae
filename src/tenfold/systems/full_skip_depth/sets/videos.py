"""Frames of a video, upright, one by one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tenfold.errors import UserError, require

VIDEO_SUFFIXES = frozenset((".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm"))


def read_video(path: str | Path, *, every: int = 1) -> Iterator[tuple[int, Tensor]]:
    """Frames of a video's first picture stream, decoded as they are asked for.

    Args:
        path: the file; read as it lies, nothing that it names is fetched.
        every: 1 for all frames, n for each n-th.

    Yields:
        Number of the frame from 0, and ``(3, height, width)`` uint8 RGB, turned as the file says it is to be shown.

    Raises:
        UserError: PyAV is missing, or the file is missing, damaged, or has no picture stream.
    """
    av = require("av", "video")
    path = Path(path)
    if every < 1:
        raise UserError(f"every must be 1 or more; got {every}")
    if not path.is_file():
        raise UserError(f"cannot read {path}: there is no such file")
    number = -1
    try:
        # Lists of other files, which some formats are, may name places elsewhere: only the file itself is opened.
        with path.open("rb") as file, av.open(file, options={"protocol_whitelist": ""}) as container:
            if not container.streams.video:
                raise UserError(f"{path} has no picture stream")
            for number, frame in enumerate(container.decode(video=0)):
                if number % every == 0:
                    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                    yield number, torch.from_numpy(turned.copy()).permute(2, 0, 1).contiguous()
    except (av.error.FFmpegError, ValueError, OSError) as error:
        where = f"after frame {number}" if number >= 0 else "at its start"
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise UserError(f"{path} is damaged or no video ({where}): {reason}") from error
    if number < 0:
        raise UserError(f"{path} holds no frame")
