"""Thresholds of the patch scan from clean sets, and its power from poisoned ones.

The evidence of a scan is ``min(AI / 3.2, Score / .2)``, at its largest over sizes and classes. The threshold is the
largest evidence of ``n`` sets known to be clean: a further clean set of the same kind exceeds it with a probability of
``1 / (n + 1)``, whatever the distribution. ``calibration.json`` holds what ``benchmarks/condensation_audit_detection.py``
measured; ``calibrate`` does the same on a user's data.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from tenfold.data.images import LabelledImages
from tenfold.errors import UserError
from tenfold.run import write_atomically
from tenfold.seeds import derived_seed
from tenfold.systems.condensation_audit.attack_metrics import attack_success
from tenfold.systems.condensation_audit.condense import condense
from tenfold.systems.condensation_audit.naive_attack import NaiveAttack
from tenfold.systems.condensation_audit.patch_scan import PROVISIONAL, default_sizes, scan_patches, spread_rows
from tenfold.systems.condensation_audit.quality import train_on
from tenfold.systems.condensation_audit.real_data import RealData
from tenfold.systems.condensation_audit.sets import CondensedSet, TrainingRecipe
from tenfold.systems.condensation_audit.triggers import white_patch

NOTICEABLE = 0.25
"""Success rate from which on an attack counts for the power."""

_SHIPPED = "calibration.json"


@dataclass(frozen=True)
class Power:
    """How often the scan found attacks of one patch size.

    Attributes:
        size: side of the patch in pixels.
        sets: simulated sets whose attack succeeds on at least a quarter of the images.
        found: of these, how many the scan flagged with the right class.
    """

    size: int
    sets: int
    found: int


@dataclass(frozen=True)
class Calibration:
    """What a scan's evidence is compared with.

    Attributes:
        image_shape: of the sets that it was made with.
        images_per_class: of these sets.
        method: that condensed them.
        networks: trained on each.
        evidence: of the clean sets.
        power: from poisoned sets.
        data: name of the data.
        note: what else a reader must know.
    """

    image_shape: tuple[int, int, int]
    images_per_class: float
    method: str
    networks: int
    evidence: tuple[float, ...]
    power: tuple[Power, ...] = ()
    data: str = ""
    note: str = ""

    @property
    def threshold(self) -> float:
        """Evidence that no clean set reached; 1, the provisional thresholds, where there were no sets."""
        return max(self.evidence, default=1.0)

    @property
    def false_alarms(self) -> float | None:
        """Probability with which a further clean set exceeds the threshold; ``None`` where there were no sets."""
        return 1 / (len(self.evidence) + 1) if self.evidence else None

    def describe(self, found: CondensedSet | None = None) -> str:
        """One sentence: where the thresholds come from, and whether they fit a set."""
        if not self.evidence:
            return "The thresholds are provisional (AI 3.2, score .2): nothing was calibrated for sets like this one."
        sentence = (
            f"The threshold comes from {len(self.evidence)} clean {self.method} sets of {self.data or 'other data'}, "
            f"{self.image_shape[1]} x {self.image_shape[2]} pixels, {self.images_per_class:g} images per class: a further "
            f"clean set of that kind exceeds it with probability {self.false_alarms:.3f}."
        )
        if found is not None and not self.fits(found):
            sentence += " This set is of another kind: recalibrate on your data for an error rate that holds."
        return sentence

    def fits(self, found: CondensedSet) -> bool:
        """Whether a set is of the calibrated kind."""
        near = 0.5 <= found.images_per_class / self.images_per_class <= 2
        return found.preprocessing.image_shape == self.image_shape and near and found.method == self.method

    def power_sentence(self) -> str:
        """What would have been found."""
        told = [
            f"a {p.size} x {p.size} patch that turns at least a quarter of the images was found in {p.found} of {p.sets} "
            "simulated sets"
            for p in self.power
            if p.sets
        ]
        return "; ".join(told).capitalize() + "." if told else "The power of the scan was not measured for such sets."

    def to_json(self) -> str:
        """The text of a calibration file."""
        return json.dumps(asdict(self), indent=1) + "\n"


def parse_calibration(text: str, source: str) -> Calibration:
    """Read a calibration.

    Args:
        text: JSON.
        source: where it comes from, for messages.

    Raises:
        UserError: it is no calibration.
    """
    try:
        values = json.loads(text)
        power = tuple(Power(**entry) for entry in values.pop("power"))
        shape = tuple(int(side) for side in values.pop("image_shape"))
        evidence = tuple(float(value) for value in values.pop("evidence"))
        made = Calibration(image_shape=shape, evidence=evidence, power=power, **values)  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{source} is not a calibration of the audit: {error}; make one with calibrate") from error
    if len(shape) != 3 or not all(torch.isfinite(torch.tensor(evidence))):
        raise UserError(f"{source} is not a calibration of the audit: wrong image shape or evidence")
    return made


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration file.

    Raises:
        UserError: it cannot be read, or is no calibration.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return parse_calibration(text, str(path))


def shipped_calibration() -> Calibration:
    """What comes with this version."""
    source = files("tenfold.systems.condensation_audit").joinpath(_SHIPPED)
    return parse_calibration(source.read_text(encoding="utf-8"), _SHIPPED)


def provisional(found: CondensedSet) -> Calibration:
    """Thresholds for a set of a kind that was not calibrated: AI 3.2 and score .2."""
    return Calibration(found.preprocessing.image_shape, found.images_per_class, found.method, 0, ())


def calibration_for(found: CondensedSet) -> Calibration:
    """What comes with this version if it fits the set, else the provisional thresholds."""
    shipped = shipped_calibration()
    return shipped if shipped.fits(found) else provisional(found)


def scan_thresholds(found: CondensedSet) -> tuple[float, float]:
    """AI and score that a class of a set must both exceed to be flagged."""
    threshold = calibration_for(found).threshold
    return PROVISIONAL[0] * threshold, PROVISIONAL[1] * threshold


@dataclass(frozen=True)
class CalibrationPlan:
    """How :func:`calibrate` makes its sets.

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
        lines, image_shape=data.preprocessing.image_shape, images_per_class=plan.images_per_class, method=plan.method,
        networks=plan.networks, data=data.name,
    )  # fmt: skip


def from_lines(lines: Sequence[dict[str, Any]], **about: Any) -> Calibration:
    """A calibration from scanned sets.

    Args:
        lines: for each set ``evidence``; for poisoned ones also ``size``, ``asr`` and ``right``, whether the class of
            the strongest evidence is the attacked one.
        about: the other fields of :class:`Calibration`.
    """
    made = Calibration(evidence=tuple(line["evidence"] for line in lines if not line.get("size")), **about)
    noticed = [line for line in lines if line.get("size") and line["asr"] >= NOTICEABLE]
    power = []
    for size in sorted({line["size"] for line in noticed}):
        these = [line for line in noticed if line["size"] == size]
        found = [line for line in these if line["evidence"] > made.threshold and line["right"]]
        power.append(Power(size, len(these), len(found)))
    return replace(made, power=tuple(power))


def halves(clean: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """Held-out images in two halves, alternately within each class: what is searched with is not judged with.

    Raises:
        UserError: a class has fewer than two images.
    """
    counts = torch.bincount(clean.labels, minlength=len(clean.classes))
    if int(counts.min()) < 2:
        scarce = clean.classes[int(counts.argmin())]
        raise UserError(
            f"class {scarce!r} has {int(counts.min())} held-out clean images; the audit needs at least 2 of each class, "
            "better 20"
        )
    rows = [(clean.labels == label).nonzero().flatten() for label in range(len(clean.classes))]
    first, second = (torch.cat([row[half::2] for row in rows]).sort().values for half in (0, 1))
    return clean.subset(first), clean.subset(second)


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
        part, plan.method, plan.images_per_class, plan.network, network_arguments=plan.arguments, recipe=plan.recipe,
        attack=attack, seed=seed, device=device, **plan.settings,
    )  # fmt: skip
    ensemble = train_on(found, seeds=[derived_seed(seed, 3, k) for k in range(plan.networks)], device=device)
    scan = scan_patches(ensemble, scanned.images, scanned.labels, found.preprocessing)
    line: dict[str, Any] = {"evidence": scan.strongest}
    if attack is not None:
        images = found.preprocessing.normalise(attack.trigger.stamp_valid(measured.images).to(device))
        success = attack_success(ensemble.predict(images).cpu(), measured.labels, attack.poisoner.target)
        right = scan.suspects(1)[0][0].target == attack.poisoner.target
        line |= {"size": attack.size, "asr": float(success.mean()), "right": right}
    return line


def _finished(kept: str | Path | None) -> list[dict[str, Any]]:
    if kept is None or not Path(kept).exists():
        return []
    try:
        return [json.loads(line) for line in Path(kept).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{kept} holds no unfinished calibration: {error}; remove it") from error
