"""The ablation grid connectivity x fusion, and the resize modes, on the harder rooms, with the learned weights.

    python benchmarks/full_skip_depth_ablations.py [--seeds N] [--steps N] [--images N] [--workers N] [--out FILE]

Every cell is one short training per seed of the same encoder with the same images in the same order. So short a
training ranks cells only where they differ by more than the spread over seeds that stands beside them. Started again, a
grid that was stopped goes on.
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
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

ENCODER, WIDTH, SIZE, BATCH = "tiny-8-16-24-32-48", 48, (48, 64), 8
NUMBERS = ("abs_rel", "rmse", "edge_abs_rel", "boundary_f", "cpu_seconds")
PARTS: dict[str, FrameArrays] = {}
"""Training and test frames of this process."""


def cells() -> list[dict]:
    """Settings of the grid: every wiring with every fusion, then every resize of FSCN."""
    grid = [
        {"connectivity": c, "fusion": f, "resize": "area"}
        for c in CONNECTIVITIES
        for f in (FUSIONS if c != "none" else ["concat", "se"])  # without sources the others are one of these
    ]
    return grid + [{"connectivity": "shallow", "fusion": "scalar+se", "resize": r} for r in RESIZES if r != "area"]


def open_frames(images: int) -> None:
    """Render the rooms once per process."""
    torch.set_num_threads(1)
    held = max(4, images // 4)
    rooms = render_rooms(images + held, height=SIZE[0], width=SIZE[1], seed=77)
    frames = FrameArrays(rooms.images, rooms.depths, rooms.focal)
    PARTS["train"], PARTS["test"] = frames.subset(slice(images)), frames.subset(slice(images, images + held))


def train(settings: dict, steps: int, seed: int) -> dict:
    """Train one cell with one seed; its numbers on the test frames."""
    torch.manual_seed(seed)
    network = build_network(ENCODER, width=WIDTH, **settings).to(memory_format=torch.channels_last)
    recipe = Recipe("adabins", 5e-3, 0.01, 1.0)
    optimizer, factor = recipe.optimizer(network, fused=True), recipe.schedule(steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    objective = DepthObjective(SiLogLoss(maximum=10.0))
    batches = FrameBatches(PARTS["train"], BATCH, seed=seed, augmentation=Augmentation())
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
    protocol = replace(PROTOCOLS["all"], max_depth=10.0)
    score = score_network(network.eval(), PARTS["test"], protocol, boundaries=True)
    weights = network.decoder.source_weights()
    return {
        "params": count_parameters(network),
        "cpu_seconds": seconds,
        **{name: score.metrics[name] for name in NUMBERS[:-1]},
        "source_weights": {str(level): {str(j): round(w, 4) for j, w in row.items()} for level, row in weights.items()},
    }


def summary(settings: dict, runs: list[dict]) -> dict:
    """A row of the table: means over seeds, and the seeds' own abs rel."""
    errors = [run["abs_rel"] for run in runs]
    return {
        **settings,
        "params": runs[0]["params"],
        **{name: float(np.mean([run[name] for run in runs])) for name in NUMBERS},
        "abs_rel_by_seed": errors,
        "abs_rel_sd": float(np.std(errors, ddof=1)) if len(errors) > 1 else None,
        "source_weights": runs[0]["source_weights"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default="benchmarks/results/full-skip-depth-ablations.json")
    options = parser.parse_args()
    out = Path(options.out)
    what = {
        "encoder": ENCODER,
        "width": WIDTH,
        "size": list(SIZE),
        "steps": options.steps,
        "batch_size": BATCH,
        "seeds": options.seeds,
        "train_images": options.images,
        "test_images": max(4, options.images // 4),
    }
    # A grid that was stopped goes on where it stood.
    before = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    rows = before["cells"] if all(before.get(key) == value for key, value in what.items()) else []
    left = [cell for cell in cells() if not any(cell.items() <= row.items() for row in rows)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, open_frames, (options.images,)) as pool:
        waiting = [
            (cell, [pool.submit(train, cell, options.steps, seed) for seed in range(options.seeds)]) for cell in left
        ]
        for cell, futures in waiting:
            rows.append(summary(cell, [future.result() for future in futures]))
            print(*cell.values(), f"{rows[-1]['abs_rel']:.4f}", flush=True)
            results = {**what, "environment": {"torch": torch.__version__, "threads": 1}, "cells": rows}
            out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
