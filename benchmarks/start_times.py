"""Processor seconds of commands that train nothing, over those of ``import torch``.

    python benchmarks/start_times.py RUN [--before CHECKOUT] [--out benchmarks/results/start-times.json]

``RUN`` is a finished run of boosted exits on the digits. ``--before`` names a checkout of an earlier version, whose
source runs in the same environment, command by command in turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

TURNS = 5


def processor_seconds(arguments, source):
    """User and system time of a process and its children."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    before = os.times()
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    after = os.times()
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr[-500:]}")
    return after.children_user + after.children_system - before.children_user - before.children_system


def main():
    """Measure in turn, and write medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--before", default=None)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "start-times.json"))
    options = parser.parse_args()
    sources = {"now": Path(__file__).parents[1] / "src"}
    if options.before:
        sources["before"] = Path(options.before) / "src"
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "digit.png"
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
        commands = {
            "import torch": ["-c", "import torch"],
            "tenfold list": ["-m", "tenfold", "list"],
            "tenfold --help": ["-m", "tenfold", "--help"],
            "tenfold run boosted-exits --help": ["-m", "tenfold", "run", "boosted-exits", "--help"],
            "tenfold predict RUN IMAGE": ["-m", "tenfold", "predict", options.run, str(image)],
        }
        found = {name: {which: [] for which in sources} for name in commands}
        for _ in range(TURNS):
            for name, command in commands.items():
                for which, source in sources.items():
                    found[name][which].append(processor_seconds(command, source))
    torch_alone = statistics.median(found["import torch"]["now"])
    rows = [
        {"command": name, **{which: round(statistics.median(times), 3) for which, times in by.items()},
         "over_torch": round(statistics.median(by["now"]) - torch_alone, 3)}
        for name, by in found.items()
    ]  # fmt: skip
    for row in rows:
        print(row)
    Path(options.out).write_text(
        json.dumps({"turns": TURNS, "unit": "processor seconds, medians", "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
