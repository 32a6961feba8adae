"""What a prediction with uncertainty costs over a plain one: one pass with an estimator, and Monte-Carlo dropout.

    python benchmarks/activation_uncertainty_serving.py [--quick]

All forms run in this process on the same model and batch, interleaved; times are medians. torch-uncertainty's MC
dropout is measured beside ours where it is installed (extra ``benchmarks``).
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from tenfold.cost import count_flops
from tenfold.models.onnx import export_onnx, onnx_session
from tenfold.run import environment
from tenfold.systems.activation_uncertainty import ActivationUncertainty, dropout_labels
from tenfold.systems.activation_uncertainty.main_models.networks import image_cnn, image_mlp
from tenfold.systems.activation_uncertainty.serving.onnx_graph import export_uncertain

RESULT = Path(__file__).parent / "results" / "activation-uncertainty-serving.json"
SHAPE = (1, 28, 28)
PASSES = 20
NETWORKS = {
    "MLP 256-128-64": lambda: image_mlp(num_classes=10, image_shape=SHAPE, rate=0.2),
    "MLP 1024-512-256": lambda: image_mlp(num_classes=10, image_shape=SHAPE, widths=(1024, 512, 256), rate=0.2),
    "MLP 2048-2048-1024": lambda: image_mlp(num_classes=10, image_shape=SHAPE, widths=(2048, 2048, 1024), rate=0.2),
    "CNN 32-64-128": lambda: image_cnn(num_classes=10, image_shape=SHAPE, rate=0.25),
}


def interleaved(calls, rounds, warmup=3):
    """Median milliseconds of each call, all of them once in every round."""
    times = {name: [] for name in calls}
    with torch.no_grad():
        for number in range(rounds + warmup):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if number >= warmup:
                    times[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def peer_of(model):
    """torch-uncertainty's MC dropout of a copy of the model; ``None`` where it is not installed."""
    try:
        from torch_uncertainty.methods import mc_dropout
    except ImportError:
        return None
    return mc_dropout(copy.deepcopy(model), num_estimators=PASSES, on_batch=True).eval()


def measure(name, batch, rounds, folder):
    """One network at one batch size."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    rows = torch.randn(600, *SHAPE)
    learner = ActivationUncertainty(model, rows[:2], passes=20).fit([rows], epochs=3)
    last = list(learner.features.blocks)[-1]
    everything = learner.serve()
    one = ActivationUncertainty(model, rows[:2], passes=20, taps=[last]).fit([rows], epochs=3).serve()
    x = torch.randn(batch, *SHAPE)

    several = 8 if batch <= 64 else 2

    def monte_carlo(prefix):
        """Of several batches, so that finding the prefix, which is done once, counts less."""
        return dropout_labels(
            model, [x] * several, learner.dropout, learner.target, passes=PASSES, prefix=prefix
        ).uncertainty

    exported = folder / f"{name.replace(' ', '-')}-{batch}"
    exported.mkdir(parents=True)
    export_onnx(model, [rows[:2]], exported / "plain.onnx", input_names=["x"], output_names=["y"], batched=[True])
    export_uncertain(one, {"x": rows[:2]}, exported / "uncertain.onnx")
    sessions = {kind: onnx_session(exported / f"{kind}.onnx") for kind in ("plain", "uncertain")}
    feed = {"x": x.numpy()}
    calls = {
        "plain": lambda: model(x),
        "last layer": lambda: one(x),
        "all layers": lambda: everything(x),
        "plain, ONNX": lambda: sessions["plain"].run(None, feed),
        "last layer, ONNX": lambda: sessions["uncertain"].run(None, feed),
    }
    times = interleaved(calls, rounds)
    slow = {
        "T = 20, prefix cached": (lambda: monte_carlo(prefix=True), several),
        "T = 20": (lambda: monte_carlo(prefix=False), several),
    }
    peer = peer_of(model)
    if peer is not None:
        slow["torch-uncertainty, T = 20"] = (lambda: peer(x), 1)
    for kind, milliseconds in interleaved({kind: call for kind, (call, _) in slow.items()}, 3, warmup=1).items():
        times[kind] = milliseconds / slow[kind][1]
    macs = count_flops(model, x[:1], convention="multiply-adds")
    return {
        "network": name,
        "batch": batch,
        "multiply_adds": macs,
        "estimator_multiply_adds": {
            "last layer": one.estimator.multiply_adds,
            "all": everything.estimator.multiply_adds,
        },
        "milliseconds": times,
        "ratios": {kind: value / times["plain, ONNX" if "ONNX" in kind else "plain"] for kind, value in times.items()},
    }


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            for batch in (1, 64, 512):
                row = measure(name, batch, 10 if options.quick else 60, Path(folder))
                rows.append(row)
                print(name, batch, {kind: round(value, 3) for kind, value in row["ratios"].items()}, flush=True)
    try:
        peer = version("torch-uncertainty")
    except PackageNotFoundError:
        peer = None
    result = {"rows": rows, "environment": environment("cpu", torch_uncertainty=peer), "passes": PASSES}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
