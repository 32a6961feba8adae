"""Time and extra memory of the forms of the relation loss, side by side in one process.

    python benchmarks/relation_kernels.py [--out FILE]

ViT-L block 18 to ViT-B shapes at 197 and 1,025 tokens. On a CPU the batch is small; on a GPU inputs are bfloat16.
"""

import argparse
import json
import platform
from pathlib import Path

import torch

from tenfold.systems.relation_distillation.evaluation.loss_forms import compare_forms

OUT = Path(__file__).parent / "results" / "relation-kernels.json"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=str(OUT))
    out = parser.parse_args().out
    gpu = torch.cuda.is_available()
    results = {
        "environment": {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if gpu else f"cpu ({platform.machine()})",
            "threads": torch.get_num_threads(),
        },
        "shapes": [],
    }
    for tokens, batch, heads in ((197, 128 if gpu else 8, 16), (1025, 64 if gpu else 1, 16)):
        shape = {"tokens": tokens, "batch": batch, "heads": heads, "width_s": 48, "width_t": 64}
        exact = (
            compare_forms(**shape, forms=("direct",), dtype=torch.float64, repeats=2)[0]["loss"] if not gpu else None
        )
        rows = compare_forms(**shape, repeats=9)
        for row in rows:
            row["relative_error"] = None if exact is None else abs(row["loss"] - exact) / exact
        results["shapes"].append(shape | {"rows": rows})
        print(tokens, *(f"\n  {row}" for row in rows))
    Path(out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
