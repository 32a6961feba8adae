"""An audit's evidence as a plot and tables."""

from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.results import Plot, Series, Table

if TYPE_CHECKING:
    from tenfold.systems.condensation_audit.audit_report import AuditReport


def score_plot(report: "AuditReport") -> Plot:
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


def evidence_tables(report: "AuditReport") -> list[Table]:
    """Verdict, suspects, defences, attribution, repairs: what there is of them."""

    def cell(value: float | None) -> float | None:
        return None if value is None else finite(value)

    tables = [
        Table(
            id="verdict",
            title="Verdict",
            columns=["verdict", "why", "clean accuracy", "evidence", "threshold"],
            rows=[[report.verdict, report.reason, float(np.mean(report.accuracies)), report.evidence,
                   report.threshold]],
            caption=f"{report.calibration} {report.power}",
        )
    ]  # fmt: skip
    if report.findings:
        tables.append(
            Table(
                id="suspects",
                title="Suspect patches, on images that they were not searched with",
                columns=["class", "patch", "row", "column", "AI", "success", "low", "high", "control", "effect", "is"],
                rows=[
                    [report.classes[f.target], f"{f.cell.size} x {f.cell.size}", f.cell.row, f.cell.column, f.anomaly,
                     f.success, f.interval[0], f.interval[1], cell(f.control), cell(f.effect), f.kind]
                    for f in (finding.confirmation for finding in report.findings)
                ],
                caption="Success with an exact 95 % interval; the control are networks whose images of the class are "
                "real clean ones, attacked in the same way.",
            )
        )  # fmt: skip
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
                    [row.name, cell(row.score), row.threshold,
                     ", ".join(report.classes[c] for c in row.classes) or "none", row.seconds, row.note]
                    for row in report.defences
                ],
                caption="They have no part in the verdict.",
            )
        )  # fmt: skip
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


def finite(value: float) -> float | None:
    """The value; ``None``, which JSON can hold, where it is infinite or NaN."""
    return float(value) if np.isfinite(value) else None


def beyond_the_range(report: "AuditReport") -> dict[str, Any]:
    """The strongest patch of a colour that no image file holds."""
    cell, anomaly = report.unrealisable.suspects(1)[0]
    return {"class": report.classes[cell.target], "score": cell.score, "anomaly": anomaly, "colour": list(cell.colour)}
