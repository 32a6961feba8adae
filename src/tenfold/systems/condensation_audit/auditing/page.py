"""An audit as a page: its evidence as a plot, tables and pictures, in the form of a run's results."""

import json
from pathlib import Path

import numpy as np
import torch

import tenfold
from tenfold.data.images import LabelledImages
from tenfold.files import make_folder, write_atomically
from tenfold.report import write_report
from tenfold.report.pictures import image_grid, picture
from tenfold.results import Cost, Picture, Plot, Results, Series, Table, claim
from tenfold.run import environment, peak_process_memory_mb
from tenfold.systems.condensation_audit.attacks.success import ADVERSARIAL_CONTROL
from tenfold.systems.condensation_audit.auditing.report import NOT_TESTED, AuditReport, beyond_the_range, finite
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet


def score_plot(report: AuditReport) -> Plot:
    """What the best patch does, by class and size."""
    scan = report.scan
    return Plot(
        id="scores",
        title="What the best patch does, by class",
        kind="bar",
        x_label="class",
        y_label="share of images turned",
        series=[
            Series(name=f"{size} x {size} pixels", x=list(report.classes), y=scan.scores[number].round(4).tolist())
            for number, size in enumerate(scan.sizes)
        ],
        caption="Mean over the networks. Some classes answer to small patches without any attack: a score counts by "
        "how far it is above those of clean sets.",
    )


def evidence_tables(report: AuditReport) -> list[Table]:
    """Verdict, suspects, defences, attribution, repairs: what there is of them."""

    def cell(value: float | None) -> float | None:
        return None if value is None else finite(value)

    tables = [
        Table(
            id="verdict",
            title="Verdict",
            columns=["verdict", "why", "clean accuracy", "evidence", "threshold"],
            rows=[
                [report.verdict, report.reason, float(np.mean(report.accuracies)), report.evidence, report.threshold]
            ],
            caption=f"{report.calibration} {report.power}",
        )
    ]
    if report.findings:
        tables.append(
            Table(
                id="suspects",
                title="Suspect patches, on images that they were not searched with",
                columns=["class", "patch", "row", "column", "AI", "success", "low", "high", "control", "effect", "is"],
                rows=[
                    [
                        report.classes[f.target],
                        f"{f.cell.size} x {f.cell.size}",
                        f.cell.row,
                        f.cell.column,
                        f.anomaly,
                        f.success,
                        f.interval[0],
                        f.interval[1],
                        cell(f.control),
                        cell(f.effect),
                        f.kind,
                    ]
                    for f in (finding.confirmation for finding in report.findings)
                ],
                caption="Success with an exact 95 % interval; the control are networks whose images of the class are "
                "real clean ones, attacked in the same way.",
            )
        )
    beyond = beyond_the_range(report)
    tables.append(
        Table(
            id="unrealisable",
            title="Beyond the pixel range",
            columns=["class", "share of images turned", "AI"],
            rows=[[beyond["class"], beyond["score"], beyond["anomaly"]]],
            caption="The strongest patch of a colour that no image file can hold. Clean networks obey such patches, "
            "too; clamping inputs to the pixel range stops them.",
        )
    )
    if report.defences:
        tables.append(
            Table(
                id="defences",
                title="Published defences, for comparison",
                columns=["defence", "score", "threshold", "flags", "seconds", "note"],
                rows=[
                    [
                        row.name,
                        row.score,
                        row.threshold,
                        ", ".join(report.classes[c] for c in row.classes) or "none",
                        row.seconds,
                        row.note,
                    ]
                    for row in report.defences
                ],
                caption="They have no part in the verdict.",
            )
        )
    if report.attribution is not None:
        found = report.attribution
        tables.append(
            Table(
                id="attribution",
                title="What each image of the suspect class contributes",
                columns=["image", "success falls by", "to be dropped"],
                rows=[
                    [index, fall, "yes" if index in found.blamed else ""]
                    for index, fall in zip(found.images, found.falls, strict=True)
                ],
                caption="Networks trained again without the image.",
            )
        )
    if report.repairs:
        tables.append(
            Table(
                id="repairs",
                title="Repairs, measured",
                columns=["repair", "clean accuracy", "success of the patch"],
                rows=[[row.name, row.accuracy, row.success] for row in report.repairs],
                caption="On clean images that no repair has seen.",
            )
        )
    return tables


def evidence_pictures(report: AuditReport, judge: LabelledImages, found: CondensedSet | None) -> list[Picture]:
    """Images with the leading patch, and the images of the set that carry it; none where nothing was found.

    Args:
        report: with its findings.
        judge: clean images to paint the patch on.
        found: the set; ``None`` where a model was audited.
    """
    finding = report.leading or next(iter(report.findings), None)
    if finding is None:
        return []
    pictures: list[Picture] = []
    confirmation = finding.confirmation
    name = report.classes[confirmation.target]
    others = judge.images[judge.labels != confirmation.target]
    chosen = others[torch.linspace(0, len(others) - 1, min(8, len(others))).long()]
    rows = torch.cat([chosen, confirmation.trigger.stamp_valid(chosen)])
    grid = image_grid(rows, columns=len(chosen), row_names=["clean", "with the patch"])
    pictures.append(
        picture(
            "patch",
            f"The patch that drives {name}",
            grid,
            alt=f"Clean images, and the same with the patch at row "
            f"{confirmation.cell.row}, column {confirmation.cell.column}",
            caption=f"It turns {100 * confirmation.success:.0f} % of the images of other classes into {name}.",
        )
    )
    if found is not None:
        own = (found.hard_labels == confirmation.target).nonzero().flatten()[:20]
        crops = found.pixels[own].clamp(0, 1)
        names = [str(k) for k in own.tolist()] if len(own) <= 10 else []
        pictures.append(
            picture(
                "class",
                f"The set's images of {name}",
                image_grid(crops, columns=min(10, len(own)), column_names=names),
                alt=f"Synthetic images labelled {name}",
                caption="Above each its number in the set, as the table of contributions has it.",
            )
        )
    return pictures


def to_results(report: AuditReport) -> Results:
    """The report in the form of a run's results, for ``tenfold.report.write_report``."""
    rate = ADVERSARIAL_CONTROL
    return Results(
        system="condensation-audit",
        preset="audit",
        summary=f"{report.verdict[0].upper()}{report.verdict[1:]}. {report.reason}",
        seed=report.seed,
        version=tenfold.__version__,
        claims=[
            claim(
                "no-patch",
                f"no small patch drives a class of the {report.subject} more than it drives clean ones",
                value=report.evidence,
                target=f"<= {report.threshold:.6f}",
                unit="evidence",
                baseline="sets known to be clean",
                note=f"Verdict: {report.verdict}. {report.reason}",
            )
        ],
        metrics={
            "audit": {
                "accuracy": float(np.mean(report.accuracies)),
                "evidence": report.evidence,
                "threshold": report.threshold,
                "exit code": report.exit_code,
            }
        },
        cost=Cost(params=report.parameters, flops=0.0, seconds=report.seconds, peak_memory_mb=peak_process_memory_mb()),
        environment=environment(report.device),
        plots=[score_plot(report)],
        tables=evidence_tables(report),
        pictures=report.pictures,
        notes=[
            f"Verdict: {report.verdict}. {report.reason}",
            report.calibration,
            report.power,
            *report.notes,
            "Not tested: " + "; ".join(NOT_TESTED) + ".",
            f"A patch that clean networks obey on more than {100 * rate:.0f} % of the images is called an "
            "adversarial patch, not a backdoor.",
            "The operations of one input are not counted by an audit.",
        ],
    )


def write_audit(report: AuditReport, folder: str | Path) -> None:
    """Write ``audit.json`` and ``report.html``.

    Args:
        report: of the audit.
        folder: made if need be.

    Raises:
        UserError: the folder cannot be written.
    """
    place = make_folder(folder)
    write_atomically(place / "audit.json", json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n")
    write_report(to_results(report), place / "report.html", f"Audit: {report.verdict}")
