"""The ablation grid connectivity x fusion, and the resize modes, on the harder rooms, with the learned weights.

    python benchmarks/full_skip_depth_ablations.py [--seeds N] [--steps N] [--images N] [--out FILE]

Every cell is one short training per seed of the same encoder with the same images in the same order. So short a
training ranks cells only where they differ by more than the spread over seeds that stands beside them.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tenfold.cost import count_parameters
from tenfold.systems.full_skip_depth import (
    PROTOCOLS,
    Augmentation,
    DepthObjective,
    FrameArrays,
    FrameBatches,
    Recipe,
    SiLogLoss,
    build_network,
    render_rooms,
)
from tenfold.systems.full_skip_depth.decoders.adaptive_concat import FUSIONS
from tenfold.systems.full_skip_depth.decoders.full_skip import CONNECTIVITIES
from tenfold.systems.full_skip_depth.decoders.resizing import RESIZES
from tenfold.systems.full_skip_depth.experiment.measuring import score_network

ENCODER, WIDTH, SIZE = "tiny-8-16-24-32-48", 48, (48, 64)


def cells() -> list[dict]:
    """Settings of the grid: every wiring with every fusion, then every resize of FSCN."""
    grid = [
        {"connectivity": c, "fusion": f, "resize": "area"}
        for c in CONNECTIVITIES
        for f in (FUSIONS if c != "none" else ["concat", "se"])  # without sources the others are one of these
    ]
    return grid + [{"connectivity": "shallow", "fusion": "scalar+se", "resize": r} for r in RESIZES if r != "area"]


def train(settings: dict, train_frames: FrameArrays, test_frames: FrameArrays, steps: int, seed: int) -> dict:
    """Train one cell with one seed; its numbers on the test frames."""
    torch.manual_seed(seed)
    network = build_network(ENCODER, width=WIDTH, **settings)
    recipe = Recipe("adabins", 5e-3, 0.01, 1.0)
    optimizer, factor = recipe.optimizer(network), recipe.schedule(steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    objective = DepthObjective(SiLogLoss(maximum=10.0))
    batches = FrameBatches(train_frames, 8, seed=seed, augmentation=Augmentation())
    done = 0
    start = time.process_time()
    while done < steps:
        for batch in batches:
            loss, _ = objective(network, batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
            optimizer.step()
            schedule.step()
            done += 1
            if done == steps:
                break
    seconds = time.process_time() - start
    score = score_network(network.eval(), test_frames, replace(PROTOCOLS["all"], max_depth=10.0), boundaries=True)
    weights = network.decoder.source_weights()
    return {
        "params": count_parameters(network),
        "cpu_seconds": seconds,
        "abs_rel": score.metrics["abs_rel"],
        "rmse": score.metrics["rmse"],
        "edge_abs_rel": score.metrics["edge_abs_rel"],
        "boundary_f": score.metrics["boundary_f"],
        "source_weights": {str(level): {str(j): round(w, 4) for j, w in row.items()} for level, row in weights.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--out", default="benchmarks/results/full-skip-depth-ablations.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    held = max(4, options.images // 4)
    rooms = render_rooms(options.images + held, height=SIZE[0], width=SIZE[1], seed=77)
    frames = FrameArrays(rooms.images, rooms.depths, rooms.focal)
    parts = frames.subset(slice(options.images)), frames.subset(slice(options.images, options.images + held))
    rows = []
    for settings in cells():
        runs = [train(settings, *parts, options.steps, seed) for seed in range(options.seeds)]
        names = ("abs_rel", "rmse", "edge_abs_rel", "boundary_f", "cpu_seconds")
        row = {**settings, "params": runs[0]["params"]}
        row |= {name: float(np.mean([run[name] for run in runs])) for name in names}
        row["abs_rel_sd"] = float(np.std([run["abs_rel"] for run in runs], ddof=1)) if len(runs) > 1 else None
        row["source_weights"] = runs[0]["source_weights"]
        rows.append(row)
        print(row["connectivity"], row["fusion"], row["resize"], f"{row['abs_rel']:.4f}", flush=True)
    results = {
        "encoder": ENCODER,
        "width": WIDTH,
        "size": list(SIZE),
        "steps": options.steps,
        "batch_size": 8,
        "seeds": options.seeds,
        "train_images": options.images,
        "test_images": held,
        "environment": {"torch": torch.__version__, "threads": 1, "load": os.getloadavg()[0]},
        "cells": rows,
    }
    Path(options.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
