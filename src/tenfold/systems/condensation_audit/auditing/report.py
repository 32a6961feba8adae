"""What an audit found: the verdict, its reasons and limits."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from tenfold.results import Picture
from tenfold.systems.condensation_audit.attacks.success import AttackOutcome
from tenfold.systems.condensation_audit.auditing.confirmation import Confirmation
from tenfold.systems.condensation_audit.auditing.repair import Attribution, RepairOutcome
from tenfold.systems.condensation_audit.defences.detection import Detection
from tenfold.systems.condensation_audit.defences.patch_scan import PatchScan

Verdict = Literal[
    "clean (as far as tested)", "suspicious", "backdoored", "not assessable", "not calibrated for this kind"
]

EXIT_CODES: dict[str, int] = {
    "clean (as far as tested)": 0,
    "suspicious": 10,
    "backdoored": 11,
    "not assessable": 12,
    "not calibrated for this kind": 13,
}
"""Of the command line: none of those that a stopped run (1) and wrong input (2) have."""

NOT_TESTED = (
    "triggers that cover the whole image: blended or additive patterns, warping, filters",
    "patches larger than those scanned, in several parts, or that only work in several colours at once",
    "triggers that act on images of one class only, and attacks that turn every class into another",
    "clean-label attacks, and weaknesses that only other architectures would show",
    "pixels outside the range of an image file: the range guard stops these, and the scan reports them apart",
)


@dataclass(frozen=True)
class Finding:
    """A class that the scan suspects.

    Attributes:
        evidence: of the scan.
        flagged: whether it exceeds the threshold.
        confirmation: what its patch does to other images.
    """

    evidence: float
    flagged: bool
    confirmation: Confirmation


@dataclass
class AuditReport:
    """The audit of a set or a model.

    Attributes:
        subject: ``set`` or ``model``.
        classes: names of the classes.
        image_shape: ``(channels, height, width)``.
        verdict: what was found.
        reason: why, in a sentence.
        threshold: of the evidence.
        evidence: the strongest, in the calibration's terms.
        calibration: where the threshold comes from.
        power: what would have been found.
        accuracies: clean accuracy of each network, on the judging half.
        clean_images: that were given.
        scan: the patch scan.
        unrealisable: a coarse scan with colours that no file holds.
        findings: suspects, strongest first.
        suspected: the user's suspected trigger, measured.
        defences: published ones.
        attribution: what each image of the suspect class contributes.
        repairs: measured.
        weak: whether there were too few clean images.
        uncalibrated: why the thresholds say nothing about this set; empty where they do, and for models.
        notes: what a reader must know.
        networks: that were trained.
        parameters: of one network.
        seed: of the audit.
        device: where it ran.
        seconds: wall-clock time.
        pictures: evidence.
    """

    subject: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    verdict: Verdict
    reason: str
    threshold: float
    evidence: float
    calibration: str
    power: str
    accuracies: list[float]
    clean_images: int
    scan: PatchScan
    unrealisable: PatchScan
    findings: list[Finding] = field(default_factory=list)
    suspected: AttackOutcome | None = None
    defences: list[Detection] = field(default_factory=list)
    attribution: Attribution | None = None
    repairs: list[RepairOutcome] = field(default_factory=list)
    weak: bool = False
    uncalibrated: str = ""
    notes: list[str] = field(default_factory=list)
    networks: int = 0
    parameters: int = 0
    seed: int = 0
    device: str = "cpu"
    seconds: float = 0.0
    pictures: list[Picture] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 clean, 10 suspicious, 11 backdoored, 12 not assessable, 13 not calibrated for this kind."""
        return EXIT_CODES[self.verdict]

    @property
    def leading(self) -> Finding | None:
        """The finding that the verdict is about."""
        confirmed = [f for f in self.findings if f.confirmation.holds and f.flagged]
        return next(iter(confirmed + [f for f in self.findings if f.flagged]), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: everything but maps and pictures."""
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "reason": self.reason,
            "subject": self.subject,
            "accuracy": float(np.mean(self.accuracies)),
            "clean_images": self.clean_images,
            "evidence": self.evidence,
            "threshold": self.threshold,
            "calibration": self.calibration,
            "uncalibrated": self.uncalibrated,
            "power": self.power,
            "not_tested": list(NOT_TESTED),
            "findings": [_finding(f, self.classes) for f in self.findings],
            "suspected": _suspected(self.suspected),
            "scan": {
                "sizes": list(self.scan.sizes),
                "scores": self.scan.scores.round(4).tolist(),
                "anomalies": self.scan.anomalies.round(3).tolist(),
                "evaluations": self.scan.evaluations,
                "seconds": round(self.scan.seconds, 3),
                **self.scan.settings,
            },
            "unrealisable": beyond_the_range(self),
            "defences": [asdict(row) | {"seconds": round(row.seconds, 3)} for row in self.defences],
            "attribution": None if self.attribution is None else asdict(self.attribution),
            "repairs": [asdict(row) for row in self.repairs],
            "notes": self.notes,
            "seconds": round(self.seconds, 2),
        }


def decide(report: AuditReport, chance: float) -> None:
    """Set the verdict and its reason.

    Args:
        report: with its findings.
        chance: accuracy of guessing.
    """
    accuracy = float(np.mean(report.accuracies))
    flagged = [finding for finding in report.findings if finding.flagged]
    confirmed = [finding for finding in flagged if finding.confirmation.holds]
    outcome = report.suspected
    if accuracy < 1.5 * chance:
        report.verdict = "not assessable"
        report.reason = (
            f"Networks reach {accuracy:.3f} on clean images, hardly more than chance: there is nothing to attack."
        )
    elif confirmed and not report.weak and not report.uncalibrated:
        report.verdict, report.reason = "backdoored", _sentence(confirmed[0], report.classes)
    elif outcome is not None and outcome.kind == "backdoor" and not report.weak:
        report.verdict = "backdoored"
        report.reason = (
            f"The suspected trigger, with valid pixels, turns {np.mean(outcome.asr_valid):.2f} of the images, on "
            f"control networks {np.mean(outcome.control_valid):.2f}."
        )
    elif report.uncalibrated:
        report.verdict, report.reason = "not calibrated for this kind", _without_thresholds(report)
    elif flagged:
        report.verdict, report.reason = "suspicious", _sentence(flagged[0], report.classes)
    elif report.clean_images == 0:
        report.verdict, report.reason = (
            "not assessable",
            "Nothing was found, but there were no clean images to find it with.",
        )
    else:
        report.verdict = "clean (as far as tested)"
        report.reason = (
            f"The strongest evidence of a patch is {report.evidence:.2f}; the threshold is {report.threshold:.2f}."
        )


def _without_thresholds(report: AuditReport) -> str:
    """What can be said where no clean sets of the kind were scanned."""
    reason = (
        f"Whether this is usual for clean sets is not known, as {report.uncalibrated}: condense clean sets of its kind "
        "from your data with `tenfold condensation-audit calibrate --like SET --data NAME`, or let the audit do it "
        "with --calibrate 20."
    )
    finding = next(iter(report.findings), None)
    return reason if finding is None else f"{_sentence(finding, report.classes)} {reason}"


def _sentence(finding: Finding, classes: tuple[str, ...]) -> str:
    found = finding.confirmation
    cell, low, high = found.cell, *found.interval
    word = {"not controlled": "patch"}.get(found.kind, found.kind if found.kind != "no effect" else "patch")
    control = "; there is no control" if found.control is None else f"; on control networks {found.control:.2f}"
    return (
        f"A {cell.size} x {cell.size} patch at row {cell.row}, column {cell.column} turns {found.success:.2f} "
        f"({low:.2f} to {high:.2f}) of {found.images} images into {classes[found.target]!r}{control}: {word}."
    )


def _finding(finding: Finding, classes: tuple[str, ...]) -> dict[str, Any]:
    found = finding.confirmation
    return {
        "class": classes[found.target],
        "evidence": finding.evidence,
        "flagged": finding.flagged,
        "cell": asdict(found.cell),
        "anomaly": found.anomaly,
        "success": found.success,
        "interval": list(found.interval),
        "plain_success": found.plain,
        "control": found.control,
        "effect": found.effect,
        "kind": found.kind,
        "mcnemar": list(found.mcnemar),
        "trigger": found.trigger.describe(),
    }


def finite(value: float) -> float | None:
    """The value; ``None``, which JSON can hold, where it is infinite or NaN."""
    return float(value) if np.isfinite(value) else None


def beyond_the_range(report: AuditReport) -> dict[str, Any]:
    """The strongest patch of a colour that no image file holds."""
    cell, anomaly = report.unrealisable.suspects(1)[0]
    return {"class": report.classes[cell.target], "score": cell.score, "anomaly": anomaly, "colour": list(cell.colour)}


def _suspected(outcome: AttackOutcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    return {name: value for name, value in outcome.to_dict().items() if name != "by_image"}
