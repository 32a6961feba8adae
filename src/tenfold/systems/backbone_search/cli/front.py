"""``tenfold backbone-search front`` and ``promote``."""

from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.systems.backbone_search.cli.config_of import config_of
from tenfold.systems.backbone_search.evolution.archive import front_of, read_archive
from tenfold.systems.backbone_search.evolution.candidates import Candidate
from tenfold.systems.backbone_search.experiment.problem import Problem
from tenfold.systems.backbone_search.method import promote as promote_genomes


def _archive(run: str) -> list[Candidate]:
    path = Path(run) / "archive.jsonl"
    try:
        return read_archive(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{run} holds no finished search (archive.jsonl): {error}") from error


def front(run: str) -> str:
    """Show the front of a run's first search: score, costs, genome, from cheap to dear.

    Args:
        run: folder of the run.
    """
    config = config_of(run)
    lines = [f"{'slot':>5} {'mAP':>7} {config.search.objective:>16}  genome"]
    for c in front_of(_archive(run), (config.search.objective,)):
        genome = " ".join(f"{name}={value}" for name, value in c.genome.items())
        lines.append(f"{c.slot:>5} {100 * c.score:>7.2f} {c.costs[config.search.objective]:>16,.6g}  {genome}")
    return "\n".join(lines)


def promote(run: str, *, slots: list[int] | None = None, repeats: int = 2, epochs: int | None = None) -> dict[str, Any]:
    """Tune candidates of a run's front longer and score them again, on the search split.

    Args:
        run: folder of the run, whose seed detector is trained.
        slots: numbers of the candidates; the three best of the front where not given.
        repeats: trainings of each.
        epochs: of each training; as in the run where not given.
    """
    config = config_of(run)
    if repeats < 1 or (epochs is not None and epochs < 1):
        raise UserError(f"repeats and epochs must be at least 1; got {repeats}, {epochs}")
    found = {c.slot: c for c in _archive(run)}
    best = sorted(front_of(list(found.values()), (config.search.objective,)), key=lambda c: -c.score)[:3]
    chosen = slots if slots is not None else [c.slot for c in best]
    unknown = [slot for slot in chosen if slot not in found]
    if unknown:
        raise UserError(f"{run} has no candidate {unknown[0]}; slots run from 0 to {max(found)}")
    if not (Path(run) / f"steps/seed/{config.seed}/weights.safetensors").exists():
        raise UserError(f"{run} holds no trained seed detector: continue the run with --resume")
    problem = Problem(config)
    if epochs is not None:
        config.promotion.epochs = epochs
        config.promotion.warmup_epochs = min(config.promotion.warmup_epochs, epochs)
    search = problem.search(config.seed, Path(run))
    scores = promote_genomes(search, [found[slot].genome for slot in chosen], config.promotion, repeats)
    return {
        str(slot): {"short": round(found[slot].score, 5), "long": [round(value, 5) for value in own]}
        for slot, own in zip(chosen, scores, strict=True)
    }
