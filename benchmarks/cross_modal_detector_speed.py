"""Speed by part of the published detector at official size with random weights, beside what each part replaces.

    python benchmarks/cross_modal_detector_speed.py [--part NAME ...] [--quick] [--out FILE]

One thread, CPU time of this process; the fastest of some repeats. Parts: ``sparse`` (voxels, the whole encoder, one
layer beside dense conv3d), ``image`` (each backbone on one view, of six), ``decoder`` (scaled_dot_product_attention
beside materialised weights, with peak memory), ``step`` (matching and denoising as tensors beside loops), ``scoring``.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tenfold.cost import measure_peak_memory
from tenfold.systems.cross_modal_detector import (
    CONFIGURATIONS,
    NUSCENES,
    BoxTable,
    SparseConv,
    SparseEncoder,
    SparseTensor,
    Voxelizer,
    denoising_queries,
    encode_boxes,
    match_cost,
    score_boxes,
)
from tenfold.systems.cross_modal_detector.matching.assignment import assign
from tenfold.systems.cross_modal_detector.networks.decoder import Decoder, materialised_attention
from tenfold.systems.cross_modal_detector.networks.published import AREA
from tenfold.systems.cross_modal_detector.networks.published_branches import PublishedImageNetwork, Second

TOKENS = {"r50 800x320": 16_384 + 6_000, "vov 1600x640": 32_400 + 24_000}


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Fastest CPU time of some calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def a_cloud(points: int = 250_000) -> Tensor:
    """As ten sweeps are: dense near the vehicle, thin far away, near the ground."""
    draw = torch.Generator().manual_seed(0)
    angle, share = torch.rand(points, generator=draw) * 6.2832, torch.rand(points, generator=draw)
    far = 2 + 52 * share**2
    height = -1.8 + 2 * torch.rand(points, generator=draw) ** 4
    return torch.stack((far * angle.cos(), far * angle.sin(), height, 100 * share, share * 0.45), 1)


def voxels_and_sparse(repeats: int) -> dict[str, Any]:
    """Voxels of the 0.075 m configuration, the encoder, and one layer of 16 channels beside dense conv3d."""
    found = CONFIGURATIONS["cmt_voxel0075_vov_1600x640_cbgs"]
    voxelizer = Voxelizer(AREA, found.voxel, found.grid).eval()
    cloud = a_cloud()
    with torch.no_grad():
        features, places = voxelizer([cloud])
        encoder = SparseEncoder(5, found.grid).eval()
        encoded = encoder(features, places, 1)
        second = Second().eval()
        rows: dict[str, Any] = {
            "points": len(cloud),
            "voxels": len(places),
            "voxelize": seconds(lambda: voxelizer([cloud]), repeats),
            "sparse encoder": seconds(lambda: encoder(features, places, 1), repeats),
            "SECOND and its pyramid": seconds(lambda: second(encoded), 1),
        }
        inside = (places[:, 2] < 256) & (places[:, 3] < 256)  # dense at the full grid would be 5.4 GB a layer
        part = SparseTensor(torch.randn(int(inside.sum()), 16), places[inside], (41, 256, 256), 1)
        conv = SparseConv(16, 16)
        weight, dense = conv.weight.permute(0, 4, 1, 2, 3).contiguous(), part.dense()

        def fresh() -> Tensor:
            part.pairs.clear()
            return conv(part).features

        fresh()
        rows |= {
            "part": "41 x 256 x 256",
            "part voxels": int(inside.sum()),
            "sparse layer with its pairs": seconds(fresh, repeats),
            "sparse layer": seconds(lambda: conv(part), repeats),
            "dense conv3d": seconds(lambda: F.conv3d(dense, weight, padding=1), repeats),
        }
    return rows


def image(repeats: int) -> dict[str, Any]:
    """One view of six through each backbone and its neck."""
    rows = {}
    for kind, size in (("r50", (320, 800)), ("vov", (640, 1600))):
        network = PublishedImageNetwork(kind).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            rows[f"{kind} {size[1]}x{size[0]}, one view"] = seconds(
                lambda n=network, s=size: n(torch.rand(1, 3, *s)), 1
            )
    return rows


def decoder(repeats: int) -> dict[str, Any]:
    """A layer's cross-attention by itself, both ways, and the whole decoder."""
    rows: dict[str, Any] = {}
    for name, tokens in TOKENS.items():
        q, k, v = (torch.randn(1, 8, n, 32) for n in (900, tokens, tokens))
        ways = {"sdpa": F.scaled_dot_product_attention, "materialised": materialised_attention}
        with torch.no_grad():
            own = {way: {"seconds": seconds(partial(call, q, k, v), repeats)} for way, call in ways.items()}
            for way, call in ways.items():
                own[way]["peak_mb"] = measure_peak_memory(partial(call, q, k, v)) / 2**20
            network = Decoder(256, 6, 8, 1024).eval()
            code, memory = torch.randn(1, 900, 256), torch.randn(1, tokens, 256)
            whole = seconds(partial(network, code, memory, memory), 1)
        rows[name] = {"tokens": tokens, "attention": own, "six layers": whole}
    return rows


def step(repeats: int) -> dict[str, Any]:
    """Matching of six layers and a batch of four with 40 boxes, and denoising groups: as tensors, and by loops."""
    torch.manual_seed(0)
    boxes = [torch.rand(40, 9) + 0.5 for _ in range(4)]
    labels = [torch.randint(0, 10, (40,)) for _ in range(4)]
    targets = [encode_boxes(part) for part in boxes]
    logits, codes = torch.randn(6, 4, 900, 10), torch.randn(6, 4, 900, 10)

    def plain_matching() -> None:
        for layer in range(6):
            for sample in range(4):
                own = match_cost(logits[layer, sample], codes[layer, sample], labels[sample], targets[sample])
                linear_sum_assignment(own.numpy())

    area = torch.tensor(AREA)

    def plain_denoising() -> None:
        for part in boxes:
            for _ in range(10):
                for box in part:
                    noise = torch.rand(3) * 2 - 1
                    ((box[:3] + noise * box[3:6] / 2 - area[:3]) / (area[3:] - area[:3])).clamp(0, 1)
        mask = torch.zeros(1300, 1300, dtype=torch.bool)
        for group in range(10):
            mask[40 * group : 40 * group + 40, :400] = True

    return {
        "matching": seconds(lambda: assign(logits, codes, labels, targets), repeats),
        "matching, layer by layer": seconds(plain_matching, repeats),
        "denoising": seconds(lambda: denoising_queries(boxes, labels, area, queries=900, none=10), repeats),
        "denoising, box by box": seconds(plain_denoising, repeats),
    }


def scoring(repeats: int) -> dict[str, Any]:
    """500 samples of 40 true and 200 found boxes."""
    import numpy as np

    draw = np.random.default_rng(0)

    def table(each: int) -> BoxTable:
        n = 500 * each
        return BoxTable(
            sample=np.repeat(np.arange(500), each), label=draw.integers(0, 10, n), centre=draw.uniform(-40, 40, (n, 3)),
            size=draw.uniform(0.5, 5, (n, 3)), yaw=draw.uniform(-3, 3, n), velocity=draw.normal(size=(n, 2)),
            attribute=np.full(n, ""), ego_distance=draw.uniform(0, 55, n), score=draw.random(n), points=np.full(n, 5),
        )  # fmt: skip

    truth, found = table(40), table(200)
    return {
        "samples": 500,
        "boxes": len(found),
        "seconds": seconds(lambda: score_boxes(truth, found, NUSCENES), repeats),
    }


PARTS = {"sparse": voxels_and_sparse, "image": image, "decoder": decoder, "step": step, "scoring": scoring}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "cross-modal-detector-speed.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(arguments.out)
    found = json.loads(out.read_text()) if out.exists() else {}
    for part in arguments.part:
        found[part] = PARTS[part](1 if arguments.quick else 3)
        print(part, json.dumps(found[part], indent=1), flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
