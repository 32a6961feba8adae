"""Tables of relation distillation."""

import json

from tables.markdown import RESULTS, claims_of, table
from tenfold.results import load_results
from tenfold.systems.relation_distillation.experiment.settings import PRESETS


def small() -> str:
    """Claims and accuracies of the preset small."""
    results = load_results(RESULTS / "relation-distillation-small.json")
    known, preset = results.environment, PRESETS["small"]
    parts = [
        f"`tenfold run relation-distillation --preset small`: {known['data']}, {known['train_images']:,} training "
        f"images, {preset.finetune.labels:,} of them with labels (few: {preset.finetune.few_labels} per class), "
        f"{preset.seeds} seeds, {results.cost.seconds / 60:.1f} minutes on {known['threads']} thread of a busy "
        f"machine. {' '.join(results.notes[:-1])}"
    ]
    for found in results.tables:
        rows = [[f"{v:.2f}" if isinstance(v, float) else "" if v is None else v for v in row] for row in found.rows]
        parts += [f"{found.title}. {found.caption}", table(found.columns, rows)]
    parts += [
        "Claims, in accuracy points, paired over seeds with 95 % intervals (not settled: the interval includes the "
        "target):",
        claims_of(results),
    ]
    return "\n\n".join(parts)


def choice() -> str:
    """What the learning rates of the presets were chosen by."""
    parts = []
    for path in sorted(RESULTS.glob("relation-choice-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            ["fine-tuning, from scratch, all labels", row["learning_rate"], row["epochs"], row["accuracy"]]
            for row in found["finetuning"]
        ]
        rows += [
            [f"pre-training, {arm}, few labels", row["learning_rate"], "", accuracy]
            for row in found["pretraining"]
            for arm, accuracy in row["arms"].items()
        ]
        chosen = ", ".join(f"`{name} {value}`" for name, value in found["chosen"].items())
        parts += [
            f"`python benchmarks/relation_choice.py --preset {found['preset']}`: accuracy (%) on the "
            f"{found['validation_images']:,} validation images, seed {found['seed']}, which is none of the preset's; "
            f"chosen: {chosen}. The baseline chooses how all arms are fine-tuned.",
            table(["choice", "learning rate", "epochs", "validation"], rows),
        ]
    return "\n\n".join(parts)


def kernels() -> str:
    """Time and memory of the forms of the loss."""
    results = json.loads((RESULTS / "relation-kernels.json").read_text(encoding="utf-8"))
    rows = [
        [
            shape["tokens"],
            row["form"],
            f"{row['milliseconds']:.0f} ms",
            f"{row['speedup']:.2f}",
            f"{row['mebibytes']:.0f} MiB",
            f"{row['memory_ratio']:.1f}",
            "" if row["relative_error"] is None else f"{row['relative_error']:.0e}",
        ]
        for shape in results["shapes"]
        for row in shape["rows"]
    ]
    environment, shapes = results["environment"], results["shapes"]
    sizes = " and ".join(f"{s['batch']} x {s['heads']} maps of {s['tokens']} tokens" for s in shapes)
    return "\n\n".join(
        [
            f"`python benchmarks/relation_kernels.py`: forward and backward of both relations, ViT-L to ViT-B head "
            f"widths, {sizes}, {environment['device']}, {environment['threads']} threads, "
            f"torch {environment['torch']}. Speed and memory as ratios to the direct form; error of the loss against "
            "float64:",
            table(["tokens", "form", "time", "faster", "extra memory", "less", "error"], rows),
        ]
    )


PARTS = {"small": small, "choice": choice, "kernels": kernels}
"""Parts of the room's page that are made from results, by the name in the comment before them."""
