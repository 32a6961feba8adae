"""Make a calibration of the audit for one's own data: condense clean and poisoned sets, scan them, keep the scores."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tenfold.data.images import LabelledImages
from tenfold.errors import UserError
from tenfold.run import write_atomically
from tenfold.seeds import derived_seed
from tenfold.systems.condensation_audit.attacks.naive_attack import NaiveAttack
from tenfold.systems.condensation_audit.attacks.success import attack_success
from tenfold.systems.condensation_audit.attacks.triggers import white_patch
from tenfold.systems.condensation_audit.condensers.condense import condense
from tenfold.systems.condensation_audit.data.partition import halves, spread_rows
from tenfold.systems.condensation_audit.data.real_data import RealData
from tenfold.systems.condensation_audit.defences.calibration import Calibration, from_lines
from tenfold.systems.condensation_audit.defences.patch_scan import default_sizes, scan_patches
from tenfold.systems.condensation_audit.sets.condensed_set import TrainingRecipe
from tenfold.systems.condensation_audit.training.quality import train_on


@dataclass(frozen=True)
class CalibrationPlan:
    """How `calibrate` makes its sets.

    Attributes:
        sets: clean ones.
        poisoned: with a white patch each, for the power; sizes, portions, places and targets go round.
        networks: trained on each.
        images: clean images of a scan.
        method: condenser.
        images_per_class: of each set.
        network: name of the network.
        arguments: its further arguments.
        recipe: how it is trained.
        settings: of the condenser.
        share: of the real images that each set is condensed from.
        seed: of everything.
    """

    sets: int = 30
    poisoned: int = 12
    networks: int = 5
    images: int = 300
    method: str = "dm"
    images_per_class: int = 10
    network: str = "convnet"
    arguments: dict[str, Any] = field(default_factory=dict)
    recipe: TrainingRecipe | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    share: float = 0.6
    seed: int = 0


def calibrate(
    data: RealData,
    clean: LabelledImages,
    plan: CalibrationPlan | None = None,
    *,
    device: str = "cpu",
    kept: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Condense clean and poisoned sets of a user's data, scan them, and take the thresholds from the clean ones.

    Args:
        data: real images to condense.
        clean: held-out images: one half for the scans, the other to measure the attacks' success.
        plan: how many sets of which kind.
        device: where to compute.
        kept: file of finished sets, one JSON line each; an interrupted calibration goes on from it.
        progress: called with finished sets and all sets.

    Raises:
        UserError: too few images, or the plan does not fit them.
    """
    plan = plan or CalibrationPlan()
    if plan.sets < 10:
        raise UserError(f"a threshold needs at least 10 clean sets, better 30; got {plan.sets}")
    scanned, measured = halves(clean)
    rows = spread_rows(scanned.labels, plan.images)
    scanned = scanned.subset(rows)
    lines = _finished(kept)
    cases = _cases(data, plan)
    for number, (attack, seed) in enumerate(cases):
        if len(lines) > number:
            continue
        lines.append(_one_set(data, plan, attack, seed, scanned, measured, device))
        if kept is not None:
            write_atomically(kept, "".join(json.dumps(line) + "\n" for line in lines))
        if progress is not None:
            progress(len(lines), len(cases))
    return from_lines(
        lines,
        image_shape=data.preprocessing.image_shape,
        images_per_class=float(plan.images_per_class),
        method=plan.method,
        networks=plan.networks,
        classes=data.classes,
        sizes=default_sizes(data.preprocessing.image_shape),
        data=data.name,
    )


def _cases(data: RealData, plan: CalibrationPlan) -> list[tuple[NaiveAttack | None, int]]:
    shape, classes = data.preprocessing.image_shape, len(data.classes)
    cases: list[tuple[NaiveAttack | None, int]] = [(None, derived_seed(plan.seed, 1, n)) for n in range(plan.sets)]
    sizes, portions = default_sizes(shape)[-2:], (0.05, 0.1, 0.03)
    for n in range(plan.poisoned):
        size = sizes[n % len(sizes)]
        bottom, right = shape[1] - 1 - size, shape[2] - 1 - size
        row, column = ((bottom, right), (1, 1), (bottom, 1), (1, right))[n // 2 % 4]
        trigger = white_patch(shape, size, max(0, row), max(0, column))
        attack = NaiveAttack(portions[n % 3], (3 * n + 1) % classes, size, trigger)
        cases.append((attack, derived_seed(plan.seed, 2, n)))
    return cases


def _one_set(
    data: RealData,
    plan: CalibrationPlan,
    attack: NaiveAttack | None,
    seed: int,
    scanned: LabelledImages,
    measured: LabelledImages,
    device: str,
) -> dict[str, Any]:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    part = data.subset(order[: max(1, int(plan.share * len(data)))].sort().values)
    found = condense(
        part,
        plan.method,
        plan.images_per_class,
        plan.network,
        network_arguments=plan.arguments,
        recipe=plan.recipe,
        attack=attack,
        seed=seed,
        device=device,
        **plan.settings,
    )
    ensemble = train_on(found, seeds=[derived_seed(seed, 3, k) for k in range(plan.networks)], device=device)
    scan = scan_patches(ensemble, scanned.images, scanned.labels, found.preprocessing)
    line: dict[str, Any] = {"scores": scan.scores.tolist()}
    if attack is not None:
        images = found.preprocessing.normalize(attack.trigger.stamp_valid(measured.images).to(device))
        success = attack_success(ensemble.predict(images).cpu(), measured.labels, attack.poisoner.target)
        line |= {"size": attack.size, "asr": float(success.mean()), "target": attack.poisoner.target}
    return line


def _finished(kept: str | Path | None) -> list[dict[str, Any]]:
    if kept is None or not Path(kept).exists():
        return []
    try:
        return [json.loads(line) for line in Path(kept).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{kept} holds no unfinished calibration: {error}; remove it") from error
