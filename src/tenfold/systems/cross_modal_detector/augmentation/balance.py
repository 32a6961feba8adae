"""Class-balanced grouping and sampling (Zhu et al., 2019): rare classes are seen as often as common ones."""

from collections.abc import Sequence

import numpy as np

from tenfold.systems.cross_modal_detector.sets.frames import Frame


def balanced_order(frames: Sequence[Frame], classes: Sequence[str], draw: np.random.Generator) -> list[int]:
    """Numbers of frames of an epoch, drawn with replacement for each class in turn.

    For a class with ``n`` frames, that are a share ``s`` of all classes' frames, ``n (1 / classes) / s`` are drawn.

    Args:
        frames: the training frames.
        classes: names of the classes.
        draw: the generator.
    """
    holding = [
        [
            n
            for n, frame in enumerate(frames)
            if any(b == name and c != 0 for b, c in zip(frame.names, frame.counts, strict=True))
        ]
        for name in classes
    ]
    total = sum(map(len, holding))
    chosen: list[int] = []
    for own in holding:
        if own:
            share = len(own) / total
            count = int(len(own) * (1 / len(classes)) / share)
            chosen += draw.choice(own, count).tolist()
    return chosen
