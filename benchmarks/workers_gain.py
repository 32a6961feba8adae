"""What a second core gains: one process of one thread, one of two threads, two worker processes of one thread each.

    python benchmarks/workers_gain.py [--system boosted-exits] [--out FILE]

Each way runs the preset tiny once in a fresh folder, in turn; seconds of the clock and of the processors, with those of
the worker processes. The results must be the same numbers. Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tenfold.run import environment

WAYS: dict[str, tuple[str, ...]] = {
    "one process, one thread": ("--workers", "1", "--trainer.threads", "1"),
    "one process, two threads": ("--workers", "1", "--trainer.threads", "2"),
    "two processes, one thread each": ("--workers", "2", "--trainer.threads", "1"),
}


def measure(system: str, options: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Seconds of a run, and its claims."""
    before, started = os.times(), time.monotonic()
    command = [sys.executable, "-m", "tenfold", "run", system, "--out", str(folder), "--quiet", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    clock, after = time.monotonic() - started, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    claims = json.loads((folder / "results.json").read_text(encoding="utf-8"))["claims"]
    return {"seconds": round(clock, 1), "processor_seconds": round(spent, 1), "values": [c["value"] for c in claims]}


def main() -> None:
    """Measure all ways and write the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--system", default="boosted-exits")
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "workers-gain.json")
    chosen = options.parse_args()
    with TemporaryDirectory() as folder:
        found = {name: measure(chosen.system, way, Path(folder) / str(n)) for n, (name, way) in enumerate(WAYS.items())}
    first, _, last = found.values()
    same = all(row.pop("values") == values for values in [first["values"]] for row in found.values())
    made = {
        "command": f"python benchmarks/workers_gain.py --system {chosen.system}",
        "system": chosen.system,
        "same_numbers": same,
        "ways": found,
        "gain_of_two_processes": round(first["seconds"] / last["seconds"], 2),
        "environment": environment("cpu"),
    }
    chosen.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
