"""Label assignment of YOLOX: a whole batch at once against the published loop over images and true boxes.

Both are timed side by side in one process on the same predictions, and must choose the same cells.

    python benchmarks/backbone_search_assignment.py
"""

import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from tenfold.systems.backbone_search.detector.assignment import assign, pairwise_iou
from tenfold.systems.backbone_search.detector.head import decode, make_grid


def one_by_one(boxes, objectness, classes, places, strides, true_boxes, true_classes, present):
    """The algorithm as published, image by image and box by box."""
    owners = torch.full(objectness.shape, -1)
    for image in range(len(boxes)):
        truth, kinds = true_boxes[image][present[image]], true_classes[image][present[image]]
        if len(truth) == 0:
            continue
        centres, radius = (places + 0.5) * strides[:, None], 1.5 * strides
        near = torch.stack(
            [centres[:, 0] - (truth[:, None, 0] - radius), (truth[:, None, 0] + radius) - centres[:, 0],
             centres[:, 1] - (truth[:, None, 1] - radius), (truth[:, None, 1] + radius) - centres[:, 1]], 2
        ).min(2).values > 0  # fmt: skip
        cells = near.any(0)
        if not cells.any():
            continue
        iou = pairwise_iou(truth, boxes[image][cells])
        onehot = F.one_hot(kinds, classes.shape[-1]).float()
        p = (classes[image][cells].sigmoid() * objectness[image][cells].sigmoid()[:, None]).sqrt()
        n = len(truth)
        bce = F.binary_cross_entropy(
            p[None].repeat(n, 1, 1), onehot[:, None].repeat(1, p.shape[0], 1), reduction="none"
        ).sum(-1)
        cost = bce - 3 * torch.log(iou + 1e-8) + 1e6 * ~near[:, cells]
        matching = torch.zeros_like(cost, dtype=torch.uint8)
        amounts = iou.topk(min(10, iou.shape[1]), dim=1).values.sum(1).int().clamp(min=1)
        for box in range(n):
            matching[box][cost[box].topk(int(amounts[box]), largest=False).indices] = 1
        several = matching.sum(0) > 1
        if several.any():
            best = cost[:, several].argmin(0)
            matching[:, several] = 0
            matching[best, several] = 1
        owner = torch.where(matching.sum(0) > 0, matching.argmax(0), -1)
        owners[image, cells.nonzero()[:, 0]] = owner
    return owners


def scene(batch, side, num_classes, most):
    """Random predictions and true boxes."""
    generator = torch.Generator().manual_seed(0)
    places, strides = make_grid(side, side)
    raw = torch.randn((batch, len(strides), 5 + num_classes), generator=generator)
    raw[..., 2:4] += 1
    centres = torch.rand((batch, most, 2), generator=generator) * side
    boxes = torch.cat([centres, (torch.rand((batch, most, 2), generator=generator) * 0.3 + 0.03) * side], -1)
    kinds = torch.randint(0, num_classes, (batch, most), generator=generator)
    present = torch.arange(most) < torch.randint(1, most + 1, (batch,), generator=generator)[:, None]
    return decode(raw, places, strides), raw[..., 4], raw[..., 5:], places, strides, boxes, kinds, present


def main():
    """Time both, alternating, and write the results."""
    torch.set_num_threads(1)
    rows = []
    for side, num_classes, most in ((128, 3, 20), (416, 80, 20), (416, 80, 60)):
        arguments = scene(16, side, num_classes, most)
        times = {"batch": [], "loop": []}
        ours, theirs = assign(*arguments).box, one_by_one(*arguments)
        same = bool(torch.equal(ours, theirs))
        for _ in range(9):
            for name, call in (("batch", assign), ("loop", one_by_one)):
                start = time.process_time()
                call(*arguments)
                times[name].append((time.process_time() - start) * 1000)
        batch, loop = (statistics.median(times[name]) for name in ("batch", "loop"))
        rows.append(
            {"side": side, "classes": num_classes, "boxes_at_most": most, "same_cells": same,
             "batch_ms": round(batch, 3), "loop_ms": round(loop, 3), "times_faster": round(loop / batch, 2)}
        )  # fmt: skip
        print(rows[-1])
    path = Path(__file__).parent / "results" / "backbone-search-assignment.json"
    facts = {"batch_size": 16, "threads": 1, "clock": "CPU time, median of 9", "torch": torch.__version__}
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
