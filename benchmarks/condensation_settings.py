"""Choose the condensers' settings of preset small on validation images, with a seed that no run uses.

    TENFOLD_DATA=DIR python benchmarks/condensation_settings.py

Every candidate is condensed once and judged by three networks on the 1,000 images that are held out of training; the
test images are not looked at. The best of each method is what ``settings.py`` holds.
"""

import json
import time
from pathlib import Path

import torch

from tenfold.systems.condensation_audit.condensers.condense import condense
from tenfold.systems.condensation_audit.data.load import load_data
from tenfold.systems.condensation_audit.experiment.set_arms import recipe_of
from tenfold.systems.condensation_audit.experiment.settings import PRESETS
from tenfold.systems.condensation_audit.training.quality import train_on

OUT = Path(__file__).parent / "results" / "condensation-settings.json"
SEED, PER_CLASS = 1000, 10
FULL = "color_crop_cutout_flip_scale_rotate"
_MTT = {"iterations": 60, "steps": 10, "experts": 3, "expert_length": 5, "expert_batch": 128, "rate": 0.02}
CANDIDATES = {
    "dm": [
        {"iterations": 200, "real_batch": 64, "image_rate": rate, "strategy": strategy}
        for rate in (1.0, 10.0)
        for strategy in ("", FULL)
    ],
    "dc": [
        {"real_batch": 64, "start": "real", "image_rate": rate, "iterations": 10, "outer": 5, "inner": 10}
        for rate in (0.1, 1.0, 10.0)
    ],
    "dsa": [
        {"real_batch": 64, "image_rate": rate, "iterations": 10, "outer": 5, "inner": 10} for rate in (0.1, 1.0, 10.0)
    ],
    "mtt": [
        {**_MTT, "image_rate": rate, "expert_epochs": 1, "max_start": 4, "strategy": ""}
        for rate in (10.0, 100.0, 1000.0)
    ],
    "dd": [
        {"iterations": 60, "steps": 1, "epochs": 10, "start": "real", "batch_size": 256, "image_rate": rate}
        for rate in (0.01, 0.03)
    ],
}


def main() -> None:
    """Measure all candidates; what is measured already is kept."""
    torch.set_num_threads(1)
    config = PRESETS["small"]
    data = load_data(config.images)
    images, labels = data.real.preprocessing.normalize(data.held_out.images), data.held_out.labels
    rows = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else []
    for method, candidates in CANDIDATES.items():
        for settings in candidates:
            if any(row["method"] == method and row["settings"] == settings for row in rows):
                continue
            started = time.perf_counter()
            found = condense(
                data.real,
                method,
                PER_CLASS,
                config.network.name,
                network_arguments=config.network.arguments,
                recipe=recipe_of(config),
                seed=SEED,
                **settings,
            )
            seconds = time.perf_counter() - started
            accuracy = float(train_on(found, seeds=[SEED, SEED + 1, SEED + 2]).accuracy(images, labels).mean())
            rows.append({"method": method, "settings": settings, "accuracy": accuracy, "seconds": seconds})
            OUT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            print(method, settings, round(accuracy, 4), round(seconds, 1), flush=True)


if __name__ == "__main__":
    main()
