"""Measurement: a network on frames under a protocol, what a constant depth is worth there, and images a second."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.systems.full_skip_depth.networks.depth_network import predict_depth
from tenfold.systems.full_skip_depth.scoring.protocols import Protocol, find_protocol
from tenfold.systems.full_skip_depth.scoring.scorer import DepthScorer, Score
from tenfold.systems.full_skip_depth.sets.frames import Frames, evaluation_batches
from tenfold.systems.full_skip_depth.sets.splits import DepthSplits

DISTANCES = (0, 2, 4, 6, 8, 10, 20, 40, 60, 80)
_LOOKED_AT = 200


def protocol_of(splits: DepthSplits, max_depth: float) -> Protocol:
    """The protocol by which a run measures: the data set's own, or all valid pixels below the network's range."""
    if splits.name == "nyu":
        return find_protocol("nyu-eigen")
    if splits.name == "kitti":
        return find_protocol("kitti-garg-cropped")  # frames are cut to 352 x 1216 when they are read
    return replace(find_protocol("all"), max_depth=max_depth, text=f"every valid pixel below {max_depth:g} m, no crop")


def score_network(
    network: nn.Module,
    frames: Frames,
    protocol: Protocol,
    *,
    flip: bool = False,
    edges: Sequence[float] = (),
    boundaries: bool = False,
    also: Sequence[Protocol] = (),
) -> Score:
    """Score a network on frames under a protocol; further ones give ``abs_rel`` under their names in the metrics."""
    scorer = DepthScorer([protocol, *also], edges=edges, boundaries=boundaries)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    for images, depths, focal, names in evaluation_batches(frames):
        given = focal.to(device) if bool(focal.isfinite().all()) else None
        depth = predict_depth(network, images.to(device), given, flip=flip, limits=(1e-3, protocol.max_depth or 1e4))
        scorer.update_all(depth.float().cpu(), depths, names)
    scores = scorer.scores()
    for other in scores[1:]:
        scores[0].metrics[f"{other.protocol}_abs_rel"] = other.metrics["abs_rel"]
    return scores[0]


def measure(network: nn.Module, splits: DepthSplits, max_depth: float, *, flip: bool = False) -> dict[str, Any]:
    """Numbers of a trained network on the test frames."""
    edges = [edge for edge in DISTANCES if edge < max_depth] + [max_depth]
    protocol = protocol_of(splits, max_depth)
    median = replace(protocol, name="median", align="median")
    score = score_network(
        network, splits.test, protocol, flip=flip, edges=edges, boundaries=splits.dense, also=[median]
    )
    return {
        "protocol": score.text,
        "metrics": {name: None if math.isnan(value) else value for name, value in score.metrics.items()},
        "rows": {
            name: [None if math.isnan(value) else value for value in score.rows[name]]
            for name in ("abs_rel", "rmse", "edge_abs_rel", "boundary_f")
            if name in score.rows
        },
        "distances": score.distances,
        "images": len(score.names),
        "skipped": len(score.skipped),
    }


def constant_error(splits: DepthSplits, max_depth: float) -> float:
    """``abs_rel`` on the test frames of one depth for every pixel, the median of the training frames' depths.

    What a network gains is to be judged from there.
    """
    rows = range(0, len(splits.train), max(1, len(splits.train) // _LOOKED_AT))
    seen = torch.cat([depth[(depth > 0) & (depth < max_depth)] for _, depth, _ in (splits.train[n] for n in rows)])
    middle = float(seen.median())

    class Constant(nn.Module):
        def forward(self, images: Tensor, focal: Tensor | None = None) -> Tensor:
            return torch.full_like(images[:, :1], middle)

    return score_network(Constant(), splits.test, protocol_of(splits, max_depth)).metrics["abs_rel"]


@torch.inference_mode()
def images_per_second(networks: Mapping[str, nn.Module], image: Tensor, turns: int = 7) -> dict[str, float]:
    """How many images a network takes in a second, one at a time: the fastest of several turns.

    On a CPU the time is that of this process, which others on the machine lengthen little.

    Args:
        networks: by name, in eval mode; they take turns.
        image: ``(1, 3, height, width)`` in [0, 1].
        turns: that are timed, after one that is not.
    """
    fastest = dict.fromkeys(networks, math.inf)
    for turn in range(turns + 1):
        for name, network in networks.items():
            device = next(network.parameters()).device
            given = image.to(device), torch.tensor([500.0], device=device)
            start = _clock(device)
            network(*given)
            taken = _clock(device) - start
            if turn:
                fastest[name] = min(fastest[name], taken)
    return {name: 1 / max(taken, 1e-9) for name, taken in fastest.items()}


def _clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()
