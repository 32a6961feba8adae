"""One network's predictions under every protocol: how many «abs rel» one prediction has.

    python benchmarks/full_skip_depth_protocols.py RUN [--frames N] [--out FILE]

The frames are rendered rooms in the sizes of KITTI (375 x 1242) and of NYU Depth v2 (480 x 640): neither data set
may be passed on. The predictions are written as 16-bit PNG files and scored from them, as anybody's would be.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tenfold.systems.full_skip_depth import PROTOCOLS, pair_files, render_rooms, score_files, write_depth_png
from tenfold.systems.full_skip_depth.cli.predicting import depth_of_photo
from tenfold.systems.full_skip_depth.delivery.models import load_network, served

CHOSEN = {
    (375, 1242, 256.0): [
        "all", "kitti-garg-full", "kitti-garg-cropped", "kitti-eigen-full", "kitti-eigen-cropped",
        "kitti-garg-full-median", "median", "depth-anything-v2",
    ],
    (480, 640, 1000.0): ["nyu-eigen", "nyu-full", "median"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--out", default="benchmarks/results/full-skip-depth-protocols.json")
    options = parser.parse_args()
    network, manifest = load_network(options.run)
    model, rows = served(network, manifest), []
    for (height, width, scale), names in CHOSEN.items():
        rooms = render_rooms(options.frames, height=height, width=width, seed=31)
        random = np.random.default_rng(0)
        with TemporaryDirectory() as name:
            for n in range(options.frames):
                truth = np.where(random.random((height, width)) < 0.3, rooms.depths[n].numpy(), 0).astype(np.float32)
                depth = depth_of_photo(model, rooms.images[n], manifest.extra["image_size"], None, False)
                for kind, values in (("truth", truth), ("ours", depth)):
                    (Path(name) / kind).mkdir(exist_ok=True)
                    write_depth_png(Path(name) / kind / f"{n}.png", values, scale)
            pairs, _ = pair_files(Path(name) / "ours", Path(name) / "truth")
            chosen = [PROTOCOLS[protocol] for protocol in names]
            for score in score_files(pairs, chosen, prediction_scale=scale, truth_scale=scale):
                found = {key: score.metrics[key] for key in ("abs_rel", "rmse", "delta1")}
                rows.append({"protocol": f"{score.protocol} ({height} x {width})", "what": score.text, **found})
    what = (
        f"FSCN of the preset {Path(options.run).name} on {options.frames} rendered rooms in the frame sizes of KITTI "
        "and of NYU, predictions and sparse truth as 16-bit PNG files:"
    )
    Path(options.out).write_text(json.dumps({"what": what, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
