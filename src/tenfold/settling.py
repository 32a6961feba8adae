"""Does it hold, yes or no? A number of seeds that is fixed before the answer is looked at, and then the answer.

    pilot   3 seeds of the smallest experiment that measures a system's main claims; only their spread is read
    plan    the seeds that find the smallest effect worth knowing with power 0.8 (or as many as the budget allows),
            written down before any of them is trained
    main    that many other seeds, paired; Student's interval and the verdict, once all are there

Neither pilot nor main uses a seed of a preset, and the pilot's seeds are not in the answer: the interval has its
nominal coverage. Both are ordinary runs, with their folders, reports and ``--resume``.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.files import make_folder, read_json, write_atomically
from tenfold.results import Claim, Results, verdict_of

PILOT_SEEDS = 3
FEWEST_SEEDS = 5
"""Of the main run, whatever the pilot's spread promises: three seeds give but a rough idea of it."""
FIRST_PILOT_SEED = 1000
FIRST_MAIN_SEED = 2000
POWER = 0.8
PLAN, SETTLED = "plan.json", "settled.json"

Runner = Callable[[Any, Path], Results]
"""Runs (or continues) a configuration in a folder."""


@dataclass(frozen=True)
class MainClaim:
    """A claim that carries a system's paper.

    Attributes:
        id: among the claims of the system's results.
        effect: smallest distance from the claim's target that is worth knowing, in the claim's unit.
        paper: what the paper found, with its table.
        depends: what the answer depends on.
    """

    id: str
    effect: float
    paper: str
    depends: str = ""


@dataclass(frozen=True)
class Trial:
    """The smallest experiment that measures a system's main claims.

    Attributes:
        config: of the system, with the fields ``seed`` and ``seeds``.
        claims: what it settles.
        looked_at: what was seen of these claims, on these data, before.
        longer: dotted settings and their values that train the baseline twice as long.
        plateau: arm and number among the results' metrics that must not move by more than the first claim's effect
            when trained so; nothing is checked where it is ``None``.
        scale: units of the first claim per unit of that number.
    """

    config: Any
    claims: tuple[MainClaim, ...]
    looked_at: str
    longer: Mapping[str, Any] = field(default_factory=dict)
    plateau: tuple[str, str] | None = None
    scale: float = 1.0


def power_of(seeds: int, effect: float, deviation: float, confidence: float = 0.95) -> float:
    """Power of Student's two-sided paired test.

    Args:
        seeds: number of pairs, at least 2.
        effect: true mean difference.
        deviation: standard deviation of the differences, greater than 0.
        confidence: 1 - alpha.
    """
    from scipy import stats

    degrees, shift = seeds - 1, effect * math.sqrt(seeds) / deviation
    edge = stats.t.ppf(0.5 + confidence / 2, degrees)
    return float(stats.nct.sf(edge, degrees, shift) + stats.nct.cdf(-edge, degrees, shift))


def seeds_needed(effect: float, deviation: float, *, power: float = POWER, most: int = 100_000) -> int:
    """Fewest pairs with which Student's paired test finds a mean difference with a power; at least 2.

    Args:
        effect: smallest difference worth finding, greater than 0.
        deviation: standard deviation of the differences.
        power: wanted, in (0, 1).
        most: where to stop looking.
    """
    if effect <= 0:
        raise ValueError(f"the effect must be greater than 0; got {effect}")
    if deviation <= 0:
        return 2
    low, high = 1, 2
    while high < most and power_of(high, effect, deviation) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle, effect, deviation) >= power else (middle, high)
    return min(high, most)


def settle(
    trial: Trial, folder: Path, run: Runner, *, budget: float | None = None, command: str = "", system: str = ""
) -> dict[str, Any]:
    """Settle a trial's claims in a folder; what is done is not done again.

    Args:
        trial: the experiment.
        folder: of the runs ``pilot``, ``main`` and, where the trial says how to train longer, ``longer``.
        run: runs a configuration in a folder of it, or continues there.
        budget: minutes for all of it; as long as the power asks for where ``None``.
        command: that makes the answer again, for the file.
        system: id of the system, for the file.

    Returns:
        What ``settled.json`` holds.

    Raises:
        UserError: the budget is spent before the fewest seeds are trained.
    """
    make_folder(folder)
    pilot = run(_with_seeds(trial.config, FIRST_PILOT_SEED, PILOT_SEEDS), folder / "pilot")
    plateau = _plateau(trial, pilot, folder, run)
    plan = _read_plan(folder) or _make_plan(trial, pilot, plateau, budget)
    write_atomically(folder / PLAN, json.dumps(plan, indent=1) + "\n")
    found = run(_with_seeds(trial.config, FIRST_MAIN_SEED, plan["seeds"]), folder / "main")
    settled = {
        "system": system or found.system,
        "command": command,
        "version": found.version,
        "environment": found.environment,
        "looked_at_before": trial.looked_at,
        "pilot_seeds": list(range(FIRST_PILOT_SEED, FIRST_PILOT_SEED + PILOT_SEEDS)),
        "seeds": list(range(FIRST_MAIN_SEED, FIRST_MAIN_SEED + plan["seeds"])),
        "seeds_chosen_by": plan["chosen_by"],
        "seconds": pilot.cost.seconds + found.cost.seconds + (plateau or {}).get("seconds", 0.0),
        "plateau": plateau,
        "claims": [_answer(main, _claim(found, main.id), plan) for main in trial.claims],
    }
    write_atomically(folder / SETTLED, json.dumps(settled, indent=1, ensure_ascii=False) + "\n")
    return settled


def _with_seeds(config: Any, first: int, seeds: int) -> Any:
    return dataclasses.replace(config, seed=first, seeds=seeds)


def _claim(results: Results, name: str) -> Claim:
    found = next((claim for claim in results.claims if claim.id == name), None)
    if found is None or len(found.by_seed) < 2:
        raise ValueError(f"{results.system} measures no claim {name!r} seed by seed")
    return found


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _make_plan(trial: Trial, pilot: Results, plateau: dict[str, Any] | None, budget: float | None) -> dict[str, Any]:
    """How many seeds; the pilot's means are not looked at."""
    deviations = {main.id: _deviation(_claim(pilot, main.id).by_seed) for main in trial.claims}
    needed = {main.id: seeds_needed(main.effect, deviations[main.id]) for main in trial.claims}
    wanted = max(FEWEST_SEEDS, *needed.values())
    chosen_by = (
        f"power {POWER:.0%} for the smallest effects worth knowing, by the spread of {PILOT_SEEDS} pilot seeds; "
        f"at least {FEWEST_SEEDS}"
    )
    if budget is not None:
        spent = pilot.cost.seconds + (plateau or {}).get("seconds", 0.0)
        affordable = int((60 * budget - spent) / (pilot.cost.seconds / PILOT_SEEDS))
        if affordable < FEWEST_SEEDS:
            need = (spent + FEWEST_SEEDS * pilot.cost.seconds / PILOT_SEEDS) / 60
            raise UserError(
                f"the pilot shows that {FEWEST_SEEDS} seeds take about {need:.0f} minutes in all; the budget is "
                f"{budget:g}: continue with --resume and --budget {math.ceil(1.1 * need)}"
            )
        if affordable < wanted:
            chosen_by = (
                f"the budget of {budget:g} minutes; power {POWER:.0%} would take {wanted} seeds by the spread of "
                f"{PILOT_SEEDS} pilot seeds"
            )
            wanted = affordable
    return {"seeds": wanted, "chosen_by": chosen_by, "deviations": deviations, "needed": needed}


def _read_plan(folder: Path) -> dict[str, Any] | None:
    if not (folder / PLAN).exists():
        return None
    plan = read_json(folder / PLAN)
    if not isinstance(plan, dict) or not isinstance(plan.get("seeds"), int):
        raise UserError(f"{folder / PLAN} is damaged; settle again in another folder")
    return plan


def _plateau(trial: Trial, pilot: Results, folder: Path, run: Runner) -> dict[str, Any] | None:
    """Whether the baseline gains no more than the effect that is sought from training twice as long."""
    if trial.plateau is None:
        return None
    arm, number = trial.plateau
    config = _with_seeds(_changed(trial.config, trial.longer), FIRST_PILOT_SEED, PILOT_SEEDS)
    longer = run(config, folder / "longer")
    before, after = (float(results.metrics[arm][number]) * trial.scale for results in (pilot, longer))  # type: ignore[arg-type]
    effect = trial.claims[0].effect
    return {
        "baseline": arm,
        "number": number,
        "longer": dict(trial.longer),
        "at_budget": before,
        "twice_as_long": after,
        "effect": effect,
        "reached": abs(after - before) <= effect,
        "seconds": longer.cost.seconds,
    }


def _changed(config: Any, settings: Mapping[str, Any]) -> Any:
    for name, value in settings.items():
        first, _, rest = name.partition(".")
        config = dataclasses.replace(
            config, **{first: _changed(getattr(config, first), {rest: value}) if rest else value}
        )
    return config


def _answer(main: MainClaim, found: Claim, plan: Mapping[str, Any]) -> dict[str, Any]:
    from scipy import stats

    values = found.by_seed
    mean = sum(values) / len(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * _deviation(values) / math.sqrt(len(values))
    interval = (mean - half, mean + half)
    return {
        "id": main.id,
        "statement": found.statement,
        "baseline": found.baseline,
        "unit": found.unit,
        "target": found.target,
        "paper": main.paper,
        "effect": main.effect,
        "pilot_deviation": plan["deviations"][main.id],
        "seeds_for_power": plan["needed"][main.id],
        "seeds_for_power_now": seeds_needed(main.effect, _deviation(values)),
        "value": mean,
        "interval": list(interval),
        "by_seed": values,
        "verdict": verdict_of(mean, found.target, interval),
        "depends": main.depends,
    }
