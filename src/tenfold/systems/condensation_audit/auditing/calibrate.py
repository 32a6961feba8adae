"""Make a calibration of the audit for one's own data: condense clean and poisoned sets, scan them, keep the scores."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tenfold.data.images import LabelledImages
from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.seeds import derived_seed
from tenfold.systems.condensation_audit.attacks.naive_attack import NaiveAttack
from tenfold.systems.condensation_audit.attacks.success import attack_success
from tenfold.systems.condensation_audit.attacks.triggers import white_patch
from tenfold.systems.condensation_audit.condensers.condense import condense
from tenfold.systems.condensation_audit.data.partition import halves, spread_rows
from tenfold.systems.condensation_audit.data.real_data import RealData, real_data
from tenfold.systems.condensation_audit.defences.calibration import Calibration, from_lines
from tenfold.systems.condensation_audit.defences.detection import SCANNED
from tenfold.systems.condensation_audit.defences.patch_scan import default_sizes, scan_patches
from tenfold.systems.condensation_audit.names import METHODS
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet, TrainingRecipe
from tenfold.systems.condensation_audit.sets.kind import kind_of
from tenfold.systems.condensation_audit.training.quality import train_on


@dataclass(frozen=True)
class CalibrationPlan:
    """How `calibrate` makes its sets.

    Attributes:
        sets: clean ones.
        poisoned: with a white patch each, for the power; sizes, portions, places and targets go round.
        networks: trained on each; as many as the audit trains.
        images: clean images of a scan, at most.
        method: condenser.
        images_per_class: of each set.
        network: name of the network.
        arguments: its further arguments.
        recipe: how it is trained.
        settings: of the condenser.
        share: of the real images that each set is condensed from: other images, too, move the scores.
        seed: of everything.

    Raises:
        UserError: a number out of range.
    """

    sets: int = 30
    poisoned: int = 12
    networks: int = 3
    images: int = SCANNED
    method: str = "dm"
    images_per_class: int = 10
    network: str = "convnet"
    arguments: dict[str, Any] = field(default_factory=dict)
    recipe: TrainingRecipe | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    share: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sets < 10:
            raise UserError(f"a threshold needs at least 10 clean sets, better 30; got {self.sets}")
        if self.poisoned < 0 or self.networks < 1 or self.images < 1 or not 0 < self.share <= 1:
            raise UserError(
                "a calibration needs at least one network and one clean image, and a share of the images in (0, 1]; "
                f"got {self.networks}, {self.images}, {self.share} and {self.poisoned} poisoned sets"
            )


def plan_like(found: CondensedSet, data: RealData, **changes: Any) -> CalibrationPlan:
    """The plan whose clean sets are made as a set says that it was.

    Args:
        found: the set.
        data: the auditor's real images.
        changes: other fields of the plan, such as ``sets``.

    Raises:
        UserError: the set does not say how it was made.
    """
    kind = kind_of(found)
    if kind.method not in METHODS or kind.images_per_class != int(kind.images_per_class):
        raise UserError(
            f"the set is {kind.method}: it does not say how it was condensed, so no clean sets of its kind can be made"
        )
    share = min(0.9, kind.images / len(data)) if kind.images else 0.9
    per_class = int(kind.images_per_class)
    if kind.method == "dd":
        per_class //= max(int(kind.settings.get("steps", 1)), 1)
    values: dict[str, Any] = {
        "method": kind.method,
        "images_per_class": per_class,
        "network": kind.network,
        "arguments": kind.arguments,
        "recipe": found.recipe,
        "settings": kind.settings,
        "share": share,
    }
    return CalibrationPlan(**(values | changes))


def prepared_like(found: CondensedSet, data: RealData) -> RealData:
    """The auditor's real images, normalized as those of a set were; whitened anew where the set is whitened.

    Args:
        found: the set.
        data: the auditor's images.
    """
    pre = found.preprocessing
    pixels = LabelledImages(data.pixels, data.labels, data.classes)
    whitened = None if pre.zca is None else pre.zca.eps
    return real_data(pixels, name=data.name, mean=pre.mean, std=pre.std, zca_eps=whitened, reading=data.reading)


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
        kept: file of finished sets, one JSON line each; an interrupted calibration goes on from it, if it was made from
            the same data by the same plan.
        progress: called with finished sets and all sets.

    Raises:
        UserError: too few images, the plan does not fit them, or ``kept`` is of another plan or other data.
    """
    plan = plan or CalibrationPlan()
    scanned, measured = halves(clean)
    scanned = scanned.subset(spread_rows(scanned.labels, plan.images))
    made_from = fingerprint(data, clean, plan)
    lines = _finished(kept, made_from)
    cases = _cases(data, plan)
    kind = None
    for number, (attack, seed) in enumerate(cases):
        if len(lines) > number:
            continue
        found = _condensed(data, plan, attack, seed, device)
        lines.append(_scanned(found, plan, attack, seed, scanned, measured, device))
        if attack is None:
            kind = kind_of(found)
        if kept is not None:
            head = json.dumps({"made_from": made_from})
            write_atomically(kept, "".join(f"{line}\n" for line in [head, *map(json.dumps, lines)]))
        if progress is not None:
            progress(len(lines), len(cases))
    if kind is None:  # all clean sets were there already
        kind = kind_of(_condensed(data, plan, None, cases[0][1], device))
    return from_lines(
        lines,
        kind=kind,
        networks=plan.networks,
        scanned=len(scanned),
        sizes=default_sizes(data.preprocessing.image_shape),
        data=data.name,
        made_from=made_from,
    )


def fingerprint(data: RealData, clean: LabelledImages, plan: CalibrationPlan) -> str:
    """Of all that a calibration is made from.

    Args:
        data: real images.
        clean: held-out images.
        plan: how its sets are made.
    """
    made = hashlib.sha256(data.fingerprint().encode())
    made.update(clean.images.numpy().tobytes() + clean.labels.numpy().tobytes())
    made.update(json.dumps(asdict(plan), sort_keys=True, default=str).encode())
    return made.hexdigest()


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


def _condensed(
    data: RealData, plan: CalibrationPlan, attack: NaiveAttack | None, seed: int, device: str
) -> CondensedSet:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    part = data.subset(order[: max(1, round(plan.share * len(data)))].sort().values)
    return condense(
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


def _scanned(
    found: CondensedSet,
    plan: CalibrationPlan,
    attack: NaiveAttack | None,
    seed: int,
    scanned: LabelledImages,
    measured: LabelledImages,
    device: str,
) -> dict[str, Any]:
    ensemble = train_on(found, seeds=[derived_seed(seed, 3, k) for k in range(plan.networks)], device=device)
    scan = scan_patches(ensemble, scanned.images, scanned.labels, found.preprocessing)
    line: dict[str, Any] = {"scores": scan.scores.tolist()}
    if attack is not None:
        images = found.preprocessing.normalize(attack.trigger.stamp_valid(measured.images).to(device))
        success = attack_success(ensemble.predict(images).cpu(), measured.labels, attack.poisoner.target)
        line |= {"size": attack.size, "asr": float(success.mean()), "target": attack.poisoner.target}
    return line


def _finished(kept: str | Path | None, made_from: str) -> list[dict[str, Any]]:
    if kept is None or not Path(kept).exists():
        return []
    try:
        head, *lines = (json.loads(line) for line in Path(kept).read_text(encoding="utf-8").splitlines())
        found = head["made_from"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{kept} holds no unfinished calibration: {error}; remove it") from error
    if found != made_from:
        raise UserError(f"{kept} is an unfinished calibration of other data or settings: remove it, or name another")
    return lines
