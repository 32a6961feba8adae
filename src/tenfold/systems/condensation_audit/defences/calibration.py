"""Thresholds of the patch scan from clean sets, and its power from poisoned ones.

Every kind of data has classes that small patches drive without any attack: a white patch at the left edge makes
T-shirts, whatever the set. So each score of a scan is compared with the scores of the same class and patch size in sets
that are known to be clean:

    z[size, class] = (score - mean over clean sets) / deviation over clean sets,   evidence = max of z

The threshold is the largest evidence of the clean sets, each judged by the others: a further clean set of the same kind
exceeds it with a probability of about ``1 / (n + 1)``. For sets of a kind that was not calibrated there is the
provisional rule, AI above 3.2 and score above .2, whose error rates are not known: it may name suspects, it proves
nothing.

``calibrations/`` holds those of the presets; what `calibrate` makes does the same for a user's data.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.attacks.success import binomial_interval
from tenfold.systems.condensation_audit.defences.patch_scan import PatchScan, provisional_evidence
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet
from tenfold.systems.condensation_audit.sets.kind import SetKind, kind_of

NOTICEABLE = 0.25
"""Success rate from which on an attack counts for the power."""


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
class VerdictCount:
    """What whole audits said of sets that calibrated nothing.

    Attributes:
        kind: of the sets, as it stands in a sentence.
        sets: how many.
        backdoored: how many got this verdict.
        right: how many of these with the class that it is; clean sets have none.
    """

    kind: str
    sets: int
    backdoored: int
    right: int = 0


@dataclass(frozen=True)
class Calibration:
    """What a scan is compared with.

    Attributes:
        kind: of the clean sets; ``None`` for the provisional rule.
        networks: trained on each.
        scanned: clean images of each scan.
        sizes: of the patches.
        scores: ``(sets, sizes, classes)`` of the clean sets; none: the provisional rule.
        power: from poisoned sets.
        verdicts: of whole audits, if they were measured.
        data: name of the data.
        note: what else a reader must know.
        made_from: fingerprint of plan and data.
    """

    kind: SetKind | None = None
    networks: int = 0
    scanned: int = 0
    sizes: tuple[int, ...] = ()
    scores: tuple[tuple[tuple[float, ...], ...], ...] = ()
    power: tuple[Power, ...] = ()
    verdicts: tuple[VerdictCount, ...] = ()
    data: str = ""
    note: str = ""
    made_from: str = ""

    @property
    def provisional(self) -> bool:
        """Whether no clean sets were scanned."""
        return len(self.scores) == 0

    def evidence_of(self, scan: PatchScan) -> np.ndarray:
        """``(sizes, classes)`` evidence of a scan; compare its largest with `threshold`."""
        if self.provisional:
            return scan.evidence
        if scan.sizes != self.sizes:
            raise UserError(f"the calibration is of patches of {self.sizes} pixels; the scan is of {scan.sizes}")
        return class_evidence(scan.scores, np.asarray(self.scores))

    @cached_property
    def threshold(self) -> float:
        """Evidence that no clean set reached, each judged by the others; 1 for the provisional rule."""
        if self.provisional:
            return 1.0
        scores = np.asarray(self.scores)
        others = [np.delete(scores, k, axis=0) for k in range(len(scores))]
        return max(float(class_evidence(own, rest).max()) for own, rest in zip(scores, others, strict=True))

    @property
    def rule_threshold(self) -> float:
        """The same for ``min(AI / 3.2, Score / .2)``."""
        return max((float(provisional_evidence(np.asarray(scores)).max()) for scores in self.scores), default=1.0)

    @property
    def false_alarms(self) -> float | None:
        """Probability with which a further clean set exceeds the threshold; ``None`` for the provisional rule."""
        return None if self.provisional else 1 / (len(self.scores) + 1)

    def describe(self) -> str:
        """Where the thresholds come from, in a sentence or two."""
        if self.provisional or self.kind is None:
            return (
                "Not calibrated for this kind: the thresholds are provisional (AI 3.2, score .2), how often clean sets "
                "of this kind exceed them is not known."
            )
        kind = self.kind
        sentence = (
            f"The threshold comes from {len(self.scores)} clean {kind.method} sets of {self.data or 'such data'}, "
            f"{kind.image_shape[1]} x {kind.image_shape[2]} pixels, {kind.images_per_class:g} images per class, made "
            f"as this one says that it was: a further clean set exceeds it with a probability of about "
            f"{self.false_alarms:.3f}."
        )
        return f"{sentence} {self.note}".strip()

    def misfit(self, found: CondensedSet, networks: int, scanned: int) -> str:
        """Why these thresholds say nothing about a set; empty where they fit.

        Args:
            found: the set.
            networks: that are trained on it.
            scanned: clean images of its scan.
        """
        if self.provisional or self.kind is None:
            return "no clean sets of its kind were scanned"
        difference = kind_of(found).difference(self.kind)
        if difference:
            return f"the clean sets differ in {difference}"
        if networks != self.networks:
            return f"{networks} networks were trained, {self.networks} on each clean set"
        if 1.5 * scanned < self.scanned:  # the fewer, the larger are scores by chance alone
            return f"only {scanned} clean images were scanned, {self.scanned} for each clean set"
        return ""

    def power_sentence(self) -> str:
        """What would have been found."""
        told = [f"{p.size} x {p.size} patches in {p.found} of {p.sets} sets" for p in self.power if p.sets]
        if not told:
            return "The power of the scan was not measured for such sets."
        return f"Of simulated attacks that turn at least a quarter of the images it found {', '.join(told)}."

    def verdict_sentence(self) -> str:
        """How often whole audits were right about sets that calibrated nothing; empty where that was not measured."""
        told = []
        for count in self.verdicts:
            low, high = binomial_interval(count.backdoored, count.sets)
            right = f", {count.right} with the right class" if count.right else ""
            told.append(
                f"{count.backdoored} of {count.sets} {count.kind}{right} (95 %: {100 * low:.0f} to {100 * high:.0f} %)"
            )
        return f"Whole audits of other sets called backdoored: {'; '.join(told)}." if told else ""

    def to_json(self) -> str:
        """The text of a calibration file."""
        return json.dumps(asdict(self)) + "\n"


LEAST_DEVIATION = 0.02
"""Scores are shares of a few hundred images: a smaller deviation between sets is not believed."""


def class_evidence(scores: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """``(sizes, classes)`` how many deviations each score is above those of clean sets.

    Args:
        scores: ``(sizes, classes)`` of a scan.
        clean: ``(sets, sizes, classes)`` of clean sets.
    """
    return (scores - clean.mean(0)) / np.maximum(clean.std(0, ddof=1), LEAST_DEVIATION)


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
        kind = TypeAdapter(SetKind).validate_python(values.pop("kind"))
        power = tuple(Power(**entry) for entry in values.pop("power"))
        verdicts = tuple(VerdictCount(**entry) for entry in values.pop("verdicts", []))
        sizes = tuple(int(size) for size in values.pop("sizes"))
        raw = values.pop("scores")
        scores = np.asarray(raw, dtype=np.float64).reshape(len(raw), len(sizes), len(kind.classes))
        made = Calibration(
            kind=kind,
            sizes=sizes,
            scores=_nested(scores),
            power=power,
            verdicts=verdicts,
            **values,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{source} is not a calibration of the audit: {error}; make one with calibrate") from error
    if len(kind.image_shape) != 3 or not np.isfinite(scores).all() or len(scores) < 2:
        raise UserError(f"{source} is not a calibration of the audit: wrong image shape or scores")
    return made


def _nested(scores: np.ndarray) -> tuple[tuple[tuple[float, ...], ...], ...]:
    return tuple(tuple(tuple(round(float(v), 6) for v in row) for row in one) for one in scores)


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration file.

    Args:
        path: what the verb ``calibrate`` wrote.

    Raises:
        UserError: it cannot be read, or is no calibration.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return parse_calibration(text, str(path))


def shipped_calibrations() -> list[Calibration]:
    """What comes with this version: of the presets ``tiny`` and ``small``."""
    folder = files("tenfold.systems.condensation_audit.defences").joinpath("calibrations")
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".json")), key=lambda entry: entry.name)
    return [parse_calibration(entry.read_text(encoding="utf-8"), entry.name) for entry in found]


def calibration_for(found: CondensedSet, networks: int, scanned: int) -> Calibration:
    """What comes with this version if it fits the set, else the provisional thresholds.

    Args:
        found: the set.
        networks: that are trained on it.
        scanned: clean images of its scan.
    """
    shipped = shipped_calibrations()
    return next((made for made in shipped if not made.misfit(found, networks, scanned)), Calibration())


def from_lines(lines: Sequence[dict[str, Any]], **about: Any) -> Calibration:
    """A calibration from scanned sets.

    Args:
        lines: for each set ``scores``, ``(sizes, classes)``; for poisoned ones also ``size`` of the patch, ``target``
            and ``asr``, the success with valid pixels.
        about: the other fields of `Calibration`.
    """
    clean = np.asarray([line["scores"] for line in lines if not line.get("size")])
    made = Calibration(scores=_nested(clean), **about)
    noticed = [line for line in lines if line.get("size") and line["asr"] >= NOTICEABLE]
    power = []
    for size in sorted({line["size"] for line in noticed}):
        these = [line for line in noticed if line["size"] == size]
        found = 0
        for line in these:
            evidence = class_evidence(np.asarray(line["scores"]), clean)
            found += evidence.max() > made.threshold and int(evidence.max(0).argmax()) == line["target"]
        power.append(Power(size, len(these), int(found)))
    return replace(made, power=tuple(power))
