"""Time that stopping saves, against the saving that cost predicts, and side by side with the package earlyon.

    python benchmarks/boosted_exits_serving.py [--quick] [--out FILE]

One network is trained briefly on the digits; everything is timed in one process, one thread, calls of the rivals
alternating, medians. Both packages serve the same trunk, the same heads and the same thresholds.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.data import TensorBatches, digits, normalize, split_indices
from tenfold.models.onnx import onnx_session
from tenfold.systems.boosted_exits import (
    BoostedExitLoss,
    EarlyExitRunner,
    attach_exits,
    cut,
    exit_costs,
    export_branching,
    simulate,
)
from tenfold.systems.boosted_exits.method import confidence

SHARES = (0.4, 0.4, 0.5)
"""Share of the inputs still open that leaves at each exit but the last: 40, 24, 18 and 18 % in all."""

Block = tuple[int, int]
LARGE: tuple[Block, ...] = ((32, 2), (64, 1), (96, 2), (128, 1))
TINY: tuple[Block, ...] = ((4, 2), (8, 2), (8, 1), (12, 2))


def make_trunk(blocks: tuple[Block, ...]) -> nn.Sequential:
    """A plain network of four blocks (width, stride) and a classifier, on grey images of 32 x 32."""
    layers: list[nn.Module] = []
    before = 1
    for width, stride in blocks:
        layers.append(
            nn.Sequential(
                nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            )
        )  # fmt: skip
        before = width
    return nn.Sequential(*layers, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)))


def images_of(data, rows: Tensor) -> Tensor:
    """Digits enlarged to 32 x 32, normalized."""
    return F.interpolate(normalize(data.images[rows], (0.3,), (0.35,)), size=32, mode="bilinear")


def train(blocks: tuple[Block, ...], epochs: int):
    """A trunk with three attached exits, trained jointly; and test images."""
    torch.manual_seed(0)
    data = digits()
    train_rows, test_rows = split_indices(len(data), [1285, 512], seed=0)
    network = attach_exits(make_trunk(blocks), ["0", "1", "2"], example=torch.zeros(2, 1, 32, 32), reweight=0.0)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), momentum=0.9, lr=0.05)
    loss = BoostedExitLoss(0.0)
    for _ in range(epochs):
        batches = TensorBatches(data.subset(train_rows), 64, seed=0, mean=(0.3,), std=(0.35,))
        for images, labels in batches:
            total = loss(network(F.interpolate(images, size=32, mode="bilinear")), labels).total
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    return network.eval(), images_of(data, test_rows)


def thresholds_for(stages, images: Tensor) -> list[float]:
    """Confidences that send the wanted share of the open inputs out at every exit."""
    open_rows = torch.arange(len(images))
    found = []
    with torch.inference_mode():
        for z, share in zip(stages.ensemble(stages(images)), SHARES, strict=False):
            sure = confidence(z)[open_rows]
            found.append(torch.quantile(sure, 1 - share).item())
            open_rows = open_rows[sure < found[-1]]
    return [*found, -1e8]


def medians(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each call, taken in turns so that the machine's moods hit all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(taken[3:]) for name, taken in times.items()}


def measure_compaction(name: str, blocks: tuple[Block, ...], epochs: int, repeats: int) -> list[dict]:
    """Realised against predicted saving at several batch sizes."""
    network, images = train(blocks, epochs)
    stages = cut(network, images[:2])
    stages.eval()
    thresholds = thresholds_for(stages, images)
    runner = EarlyExitRunner(stages, thresholds)
    expected = simulate(stages, images, thresholds)
    costs = torch.tensor(exit_costs(stages, images[:1]), dtype=torch.float64)
    stage_costs = torch.diff(costs, prepend=torch.zeros(1))
    rows = []
    for batch in (1, 8, 64, 256):
        parts = images.split(batch)[: max(2, min(64, 512 // batch))]
        served = [runner(part) for part in parts]
        exits = torch.cat([answer.exits for answer in served])
        wanted = expected.exits[: len(exits)]
        predicted = 1 - (costs[exits].mean() / costs[-1]).item()

        def full(parts=parts):
            with torch.inference_mode():
                for part in parts:
                    stages.ensemble(stages(part))

        def stopped(parts=parts):
            for part in parts:
                runner(part)

        taken = medians({"full": full, "stopped": stopped}, repeats)
        realised = 1 - taken["stopped"] / taken["full"]
        rows.append(
            {
                "network": name,
                "batch": batch,
                "stage_multiply_adds": [int(cost) for cost in stage_costs],
                "predicted_saving": round(predicted, 4),
                "realised_saving": round(realised, 4),
                "ratio": round(realised / predicted, 4),
                "full_ms_per_image": round(taken["full"] / len(exits), 5),
                "stopped_ms_per_image": round(taken["stopped"] / len(exits), 5),
                "different_exits": int((exits != wanted).sum()),
            }
        )
        print(rows[-1], flush=True)
    return rows


def compare_with_earlyon(epochs: int, repeats: int) -> dict:
    """Batches, single inputs and ONNX of both packages, on one trained network."""
    from earlyon.models import custom_ee
    from earlyon.onnx import export_all_exits_to_onnx

    network, images = train(LARGE, epochs)
    stages = cut(network, images[:2])
    stages.eval()
    thresholds = thresholds_for(stages, images)
    runner = EarlyExitRunner(stages, thresholds)
    taps = ["0", "1", "2"]
    theirs = custom_ee(
        network.trunk, taps, num_classes=10, input_shape=(1, 1, 32, 32), confidence_thresholds=thresholds[:-1]
    )
    for position, head in enumerate(network.heads):
        theirs.exit_heads[f"e{position}"] = head  # the same heads, so that both give the same logits
    theirs.eval()

    single = images[:128]
    ours_alone = [runner(image[None]) for image in single]
    theirs_alone = [theirs(image[None], mode="inference") for image in single]
    agree = sum(
        int(a.logits.argmax()) == int(b.prediction.argmax())
        and int(a.exits) == (b.exit_taken if b.exit_taken >= 0 else len(taps))
        for a, b in zip(ours_alone, theirs_alone, strict=True)
    )
    batches = images.split(64)

    def all_batches(call):
        return lambda: [call(batch) for batch in batches]

    batched = medians({"ours": all_batches(runner), "theirs": all_batches(theirs.forward_inference_batched)}, repeats)
    alone = medians(
        {
            "ours": lambda: [runner(image[None]) for image in single],
            "theirs": lambda: [theirs(image[None], mode="inference") for image in single],
        },
        max(repeats // 3, 5),
    )

    with TemporaryDirectory() as folder:
        export_branching(stages, images[:1], thresholds, Path(folder) / "ours.onnx")
        ours = onnx_session(Path(folder) / "ours.onnx")
        export_all_exits_to_onnx(theirs, Path(folder) / "theirs.onnx", input_shape=(1, 1, 32, 32), dynamic_batch=False)
        all_exits = onnx_session(Path(folder) / "theirs.onnx")
        given = np.array(thresholds, np.float32)
        feeds = [image[None].numpy() for image in single]
        easy = [feed for feed, answer in zip(feeds, ours_alone, strict=True) if int(answer.exits) == 0]
        onnx_exits = [int(ours.run(["exit"], {"input": feed, "thresholds": given})[0][0]) for feed in feeds]

        def run_ours(inputs):
            return lambda: [ours.run(None, {"input": feed, "thresholds": given}) for feed in inputs]

        def run_theirs(inputs):
            return lambda: [all_exits.run(None, {"input": feed}) for feed in inputs]

        mixed = medians({"ours": run_ours(feeds), "theirs": run_theirs(feeds)}, repeats)
        leaving = medians({"ours": run_ours(easy), "theirs": run_theirs(easy)}, repeats)

    def row(what: str, taken: dict[str, float], inputs: int, throughput: bool) -> dict:
        ours_ms, theirs_ms = taken["ours"] / inputs, taken["theirs"] / inputs
        shown = (lambda ms: f"{1000 / ms:,.0f} images/s") if throughput else (lambda ms: f"{ms:.3f} ms")
        return {
            "what": what,
            "tenfold": shown(ours_ms),
            "earlyon": shown(theirs_ms),
            "ratio": f"{theirs_ms / ours_ms:.2f}",
        }

    same_in_onnx = sum(a == int(b.exits) for a, b in zip(onnx_exits, ours_alone, strict=True))
    return {
        "table": [
            row("batches of 64, images per second", batched, len(images), throughput=True),
            row("one image at a time", alone, len(single), throughput=False),
            row("ONNX, one image, natural mix", mixed, len(feeds), throughput=False),
            row("ONNX, one image that leaves at exit 1", leaving, len(easy), throughput=False),
        ],
        "same_prediction_and_exit_alone": f"{agree} of {len(single)}",
        "same_exit_in_onnx": f"{same_in_onnx} of {len(single)}",
        "notes": [
            "Ratio: earlyon's time over tenfold's. One at a time both give the same prediction and exit for "
            f"{agree} of {len(single)} images; in a batch earlyon lets all leave where the least sure one "
            "may, and its ONNX graph computes every exit. It has no additive ensemble, so r = 0 here."
        ],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run; its numbers mean nothing")
    default = Path(__file__).parent / "results" / "boosted-exits-serving.json"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    epochs, repeats = (1, 3) if options.quick else (6, 25)
    results = {
        "benchmark": "boosted-exits-serving",
        "environment": {
            "torch": torch.__version__,
            "onnxruntime": version("onnxruntime"),
            "earlyon": version("earlyon"),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
        },
        "compaction": [
            *measure_compaction("stages above 1 M multiply-adds", LARGE, epochs, repeats),
            *measure_compaction("tiny stages", TINY, epochs, repeats),
        ],
        "earlyon": compare_with_earlyon(epochs, repeats),
    }
    for found in results["earlyon"]["table"]:
        print(found)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
