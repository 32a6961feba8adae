"""The verb ``sweep``."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.run import open_run


def sweep(
    axis: Literal["target", "pairs", "layer", "heads", "input", "droppath", "chain"],
    *,
    preset: str = "tiny",
    seeds: int | None = None,
    root: str | None = None,
    out: str | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> str:
    """Run one axis of the paper's ablations and print its table, with the paper's numbers beside it.

    Args:
        axis: target, pairs (with and without softmax), layer (every block of the teacher), heads, input, droppath or
            chain.
        preset: whose settings the rest has.
        seeds: number of seeds, where not the preset's.
        root: folder of the data.
        out: folder of the run; runs/relation-distillation/sweep-AXIS where not given.
        resume: continue the sweep in the folder.
        quiet: no progress on the console.
    """
    from tenfold.systems.relation_distillation.experiment.arms import sweep_config
    from tenfold.systems.relation_distillation.experiment.recipe import run as experiment
    from tenfold.systems.relation_distillation.experiment.settings import PRESETS

    if preset not in PRESETS:
        raise UserError(f"there is no preset {preset!r}; there are: {', '.join(PRESETS)}")
    config = sweep_config(PRESETS[preset], axis)
    config = replace(config, seeds=seeds or config.seeds, data=replace(config.data, root=root or config.data.root))
    folder = Path(out) if out else Path("runs/relation-distillation") / f"sweep-{axis}"
    run = open_run(config, system="relation-distillation", out=folder, resume=resume, quiet=quiet)
    try:
        results = run.finish(experiment(config, run))
    except UserError:
        run.discard_if_nothing_was_done()
        raise
    table = next(found for found in results.tables if found.id == "accuracy")
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in table.rows]
    text = "\n".join(lines)
    write_atomically(folder / "sweep.md", text + "\n")
    return text
