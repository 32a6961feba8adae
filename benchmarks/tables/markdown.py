"""Markdown made of results: tables, claims, verdicts."""

from pathlib import Path

from tenfold.results import Claim, Results

RESULTS = Path(__file__).parents[1] / "results"


def table(columns, rows):
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def verdict(claim: Claim) -> str:
    """A verdict; what does not hold is to be seen at once."""
    return f"**{claim.verdict}**" if claim.verdict == "does not hold" else claim.verdict


def claims_of(results: Results, digits: str = "+.2f") -> str:
    """The claims of a run, and why those that do not hold do not."""
    rows = [
        [
            claim.statement,
            "-" if claim.value is None else f"{claim.value:{digits}}",
            "-" if claim.interval is None else f"{claim.interval[0]:{digits}} .. {claim.interval[1]:{digits}}",
            claim.target,
            verdict(claim),
        ]
        for claim in results.claims
    ]
    notes = [f"- {claim.statement}: {claim.note}" for claim in results.claims if claim.note and not claim.holds]
    made = table(["claim", "measured", "interval", "target", "verdict"], rows)
    return "\n\n".join([made, *(["\n".join(notes)] if notes else [])])


def named_table(results: Results, id: str) -> str:
    """A table of the results, by its id."""
    found = next(table for table in results.tables if table.id == id)
    rows = [["" if cell is None else cell for cell in row] for row in found.rows]
    return "\n\n".join([f"{found.title}:", table(found.columns, rows), found.caption])
