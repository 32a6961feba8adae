"""Propose new triples."""

from pathlib import Path

from tenfold.files import write_atomically
from tenfold.systems.graph_fusion.serve.student import Student


def complete(
    run: str, *, top: int = 1000, min_confidence: float = 0.5, out: str | None = None, factory: str | None = None
) -> str:
    """Propose new triples for a curator, surest first: a TSV with probabilities and both students' ranks.

    Args:
        run: folder of the run, or of one of its students.
        top: triples at most.
        min_confidence: least calibrated probability.
        out: file to write; printed where not given.
        factory: of an encoder of your own.
    """
    student = Student.load(run, factory)
    rows = student.complete(top=top, min_confidence=min_confidence)
    triples = [row["triple"] for row in rows]
    ranks: dict[str, list[int]] = {}
    for side in ("structure", "text"):
        folder = Path(run) / "students" / side
        if folder.is_dir() and triples:
            ranks[side] = Student.load(folder, factory).rank_of(triples)
    lines = ["head\trelation\ttail\tprobability\thit_rate_lower_bound\tstructure_rank\ttext_rank"]
    for place, row in enumerate(rows):
        both = [str(ranks[side][place]) if side in ranks else "" for side in ("structure", "text")]
        cells = [
            row["head"],
            row["relation"],
            row["tail"],
            f"{row['probability']:.4f}",
            f"{row['hit_rate']:.4f}",
            *both,
        ]
        lines.append("\t".join(cells))
    if out is None:
        return "\n".join(lines)
    write_atomically(out, "\n".join(lines) + "\n")
    return f"{len(rows)} triples: {out}"
