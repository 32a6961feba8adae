"""``tenfold backbone-search worker``."""

from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.systems.backbone_search.cli.config_of import config_of
from tenfold.systems.backbone_search.evolution.worker import work
from tenfold.systems.backbone_search.experiment.problem import Problem


def worker(run: str, *, storage: str | None = None, seed: int | None = None) -> dict[str, Any]:
    """Join the search of a run: evaluate candidates until all are finished; as many workers as one likes.

    The run folder must be readable here and hold the trained seed detector; the study may live anywhere.

    Args:
        run: folder of the run, or a copy of it.
        storage: URL of the study; as in the run's settings where not given.
        seed: of the search that is joined; the run's first where not given.
    """
    config = config_of(run)
    chosen = config.seed if seed is None else seed
    url = storage or config.search.storage
    if url is None:
        step = Path(run) / f"steps/search/nsga2/{chosen}"
        if not step.is_dir():
            raise UserError(f"the search of {run} has not begun; begin it with tenfold run, or name a --storage")
        url = f"sqlite:///{(step / 'search.db').absolute()}"
    if not (Path(run) / f"steps/seed/{chosen}/weights.safetensors").exists():
        raise UserError(f"{run} holds no trained seed detector for the search of seed {chosen} yet")
    problem = Problem(config)
    task = problem.task(problem.search(chosen, Path(run)))
    candidates = work(task, problem.evolution("nsga2", chosen), url=url, name=f"nsga2-{chosen}")
    return {"candidates": len(candidates), "best": max((c.score for c in candidates if not c.violation), default=None)}
