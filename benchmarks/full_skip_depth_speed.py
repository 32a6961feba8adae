"""Speed and memory of decoders on one encoder at 480 x 640, and of the scorer against a plain numpy loop.

    python benchmarks/full_skip_depth_speed.py [--quick] [--part decoders|scorer] [--images N] [--out FILE]

One thread; the rivals are timed in turns, by the CPU time of this process, which others on the machine lengthen little;
their fastest and median times are kept. The encoder's features are computed once: a decoder is timed on them, with its
head.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tenfold.cost import count_flops, count_parameters, measure_peak_memory
from tenfold.models.onnx import onnx_session
from tenfold.systems.full_skip_depth import PROTOCOLS, build_network, pair_files, score_files

SIZE = (480, 640)
WIDTH = 128
NETWORKS = {
    "U-Net (same + concat)": {"connectivity": "same", "fusion": "concat"},
    "FSCN (shallow + scalar+se)": {},
    "full + scalar+se": {"connectivity": "full"},
    "AdaBins' decoder": {"decoder": "unet"},
    "AdaBins' decoder, bins": {"decoder": "unet", "head": "bins"},
    "BTS (local planar guidance)": {"decoder": "bts"},
    "UNet 3+-like": {"decoder": "unet3plus"},
    "DPT-style": {"decoder": "dpt", "width": 64},
}
ONNX = ["U-Net (same + concat)", "FSCN (shallow + scalar+se)", "AdaBins' decoder", "BTS (local planar guidance)"]
"""Those that are also timed in onnxruntime."""


class Decoding(nn.Module):
    """A network from its encoder's features on; the image gives the size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.decoder, self.head = network.decoder, network.head

    def forward(self, image: Tensor, *features: Tensor) -> Tensor:
        """Depth from features."""
        return self.head(self.decoder(features, image)[0], (image.shape[-2], image.shape[-1]))[0]


def in_turns(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Fastest and median milliseconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:
                times[name].append((time.process_time() - start) * 1000)
    return {name: (min(taken), statistics.median(taken)) for name, taken in times.items()}


def decoders(encoder: str, size: tuple[int, int], repeats: int, folder: Path) -> list[dict]:
    """Rows of the decoders' table."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, *size)
    chosen = {name: build_network(encoder, **{"width": WIDTH, **given}).eval() for name, given in NETWORKS.items()}
    first = next(iter(chosen.values()))
    with torch.inference_mode():
        features = first.encoder((image - first.mean) / first.std)
        encoding = in_turns({"encoder": lambda: first.encoder(image)}, repeats)["encoder"][0]
        parts = {name: Decoding(network).eval() for name, network in chosen.items()}
        eager = in_turns({name: lambda part=part: part(image, *features) for name, part in parts.items()}, repeats)
        memory = {name: measure_peak_memory(lambda part=part: part(image, *features)) for name, part in parts.items()}
    inputs = (image, *(x.clone() for x in features))
    onnx = in_turns({name: session_of(parts[name], inputs, folder / "part.onnx") for name in ONNX}, repeats)
    whole = in_turns({name: session_of(chosen[name], (image,), folder / "whole.onnx") for name in ONNX}, repeats)
    base = "U-Net (same + concat)"
    return [
        {
            "decoder": name,
            "parameters": count_parameters(parts[name]),
            "multiply_adds": count_flops(parts[name], *inputs, convention="multiply-adds"),
            "eager_ms": eager[name][0],
            "eager_median_ms": eager[name][1],
            "eager_speed_of_unet": eager[base][0] / eager[name][0],
            "onnx_ms": onnx[name][0] if name in onnx else None,
            "onnx_median_ms": onnx[name][1] if name in onnx else None,
            "onnx_speed_of_unet": onnx[base][0] / onnx[name][0] if name in onnx else None,
            "memory_mib": memory[name] / 2**20,
            "memory_of_unet": memory[name] / memory[base],
            "eager_images_per_second": 1000 / (eager[name][0] + encoding),
            "onnx_images_per_second": 1000 / whole[name][0] if name in whole else None,
        }
        for name in NETWORKS
    ]


def session_of(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> Callable[[], object]:
    """A call of onnxruntime of a module with these inputs, at their size."""
    names = ["image", *(f"e{n}" for n in range(1, len(inputs)))]
    torch.onnx.export(module, inputs, path, input_names=names, dynamo=True, verbose=False)
    session = onnx_session(path)
    known = {value.name for value in session.get_inputs()}
    feeds = {n: x.numpy() for n, x in zip(names, inputs, strict=True) if n in known}
    return lambda: session.run(None, feeds)


def numpy_loop(ours: Path, truth: Path) -> dict[str, float]:
    """What one writes who wants both KITTI protocols: a loop over files, all of it in numpy."""
    names = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3")
    rows: dict[str, list[list[float]]] = {"kitti-garg-full": [], "kitti-garg-cropped": []}
    for path in sorted(truth.glob("*.png")):
        whole = np.asarray(Image.open(path)).astype(np.float64) / 256
        predicted = np.asarray(Image.open(ours / path.name)).astype(np.float64) / 256
        for protocol, kept in rows.items():
            d, p = whole, predicted
            if protocol == "kitti-garg-cropped":
                top, left = d.shape[0] - 352, (d.shape[1] - 1216) // 2
                d, p = (x[top : top + 352, left : left + 1216] for x in (d, p))
            h, w = d.shape
            mask = np.zeros(d.shape, bool)
            mask[int(0.40810811 * h) : int(0.99189189 * h), int(0.03594771 * w) : int(0.96405229 * w)] = True
            mask &= (d > 1e-3) & (d < 80)
            p, d = np.clip(p, 1e-3, 80)[mask], d[mask]
            g = np.log(p) - np.log(d)
            ratio = np.maximum(d / p, p / d)
            kept.append([
                np.mean(np.abs(p - d) / d), np.mean((p - d) ** 2 / d), np.sqrt(np.mean((p - d) ** 2)),
                np.sqrt(np.mean(g**2)), np.mean(np.abs(np.log10(p) - np.log10(d))),
                100 * np.sqrt(np.mean(g**2) - np.mean(g) ** 2), *(np.mean(ratio < 1.25**n) for n in (1, 2, 3)),
            ])  # fmt: skip
    return {
        f"{key} {name}": value
        for key, kept in rows.items()
        for name, value in zip(names, np.mean(kept, 0), strict=True)
    }


def scorer(images: int, folder: Path) -> dict:
    """Seconds for both KITTI protocols of so many images, and the largest difference from the loop."""
    random = np.random.default_rng(0)
    for name in ("ours", "truth"):
        (folder / name).mkdir()
    for n in range(min(images, 40)):
        truth = np.linspace(70, 4, 375)[:, None] * random.uniform(0.8, 1.2, (375, 1242))
        ours = truth * random.uniform(0.9, 1.1, (375, 1242))
        truth[random.random(truth.shape) > 0.16] = 0  # as dense as annotated depth is
        Image.fromarray((truth * 256).astype(np.uint16)).save(folder / "truth" / f"{n}.png", compress_level=1)
        Image.fromarray((ours * 256).astype(np.uint16)).save(folder / "ours" / f"{n}.png", compress_level=1)
    for n in range(40, images):  # the same files under other names
        for name in ("ours", "truth"):
            os.link(folder / name / f"{n % 40}.png", folder / name / f"{n}.png")
    start, cpu = time.perf_counter(), time.process_time()
    pairs, _ = pair_files(folder / "ours", folder / "truth")
    found = score_files(pairs, [PROTOCOLS["kitti-garg-full"], PROTOCOLS["kitti-garg-cropped"]])
    ours_seconds, ours_cpu = time.perf_counter() - start, time.process_time() - cpu
    start, cpu = time.perf_counter(), time.process_time()
    expected = numpy_loop(folder / "ours", folder / "truth")
    loop_seconds, loop_cpu = time.perf_counter() - start, time.process_time() - cpu
    differences = [
        abs(value - expected[f"{score.protocol} {name}"]) / max(abs(expected[f"{score.protocol} {name}"]), 1e-12)
        for score in found
        for name, value in score.metrics.items()
    ]
    return {
        "images": images,
        "size": [375, 1242],
        "tenfold_seconds": ours_seconds,
        "loop_seconds": loop_seconds,
        "ratio": loop_seconds / ours_seconds,
        "largest_relative_difference": max(differences),
        "tenfold_cpu_seconds": ours_cpu,
        "loop_cpu_seconds": loop_cpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--part", choices=["decoders", "scorer"], help="measure this part only, keep the other's numbers"
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="benchmarks/results/full-skip-depth-speed.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size, repeats, images = ((96, 128), 2, 20) if options.quick else (SIZE, options.repeats, options.images)
    out = Path(options.out)
    results = json.loads(out.read_text()) if options.part and out.exists() else {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        results |= {
            "encoder": "timm/efficientnet_b0",
            "size": list(size),
            "width": WIDTH,
            "environment": {
                "torch": torch.__version__,
                "threads": 1,
                "load": os.getloadavg()[0],
                "cores": os.cpu_count(),
            },
        }
        if options.part != "scorer":
            results["decoders"] = decoders("timm/efficientnet_b0", size, repeats, folder)
        if options.part != "decoders":
            results["scorer"] = scorer(images, folder)
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
