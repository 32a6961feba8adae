"""The page on what holds: a row for each main claim of each system."""

import json
from typing import Any

from tables.markdown import RESULTS, table
from tenfold.catalog import SYSTEMS

PAGE = "docs/what-holds.md"


def _settled(system: str) -> list[dict[str, Any]]:
    paths = sorted(RESULTS.glob(f"{system}*-settled.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def claims() -> str:
    """All main claims with the paper's finding, ours, and the verdict."""
    rows, verdicts = [], []
    for system in SYSTEMS:
        page = f"[{system.id}](systems/{system.id}.md)"
        files = _settled(system.id)
        for found in files:
            for claim in found["claims"]:
                low, high = claim["interval"]
                verdicts.append(claim["verdict"])
                rows.append(
                    [
                        page,
                        f"{claim['statement']} (target {claim['target']} {claim['unit']})",
                        claim["paper"],
                        f"{claim['value']:+.3g} ({low:+.3g} to {high:+.3g}), {len(found['seeds'])} seeds",
                        f"**{claim['verdict']}**" + _more_seeds(claim, len(found["seeds"])),
                        claim["depends"],
                    ]
                )
        if not files:
            commands = ", ".join(f"`tenfold settle {system.id} --trial {name}`" for name in system.trials)
            rows.append([page, "not measured yet", "", commands, "", ""])
    settled = sum(verdict != "not settled" for verdict in verdicts)
    sentence = f"{settled} of {len(verdicts)} main claims are settled." if verdicts else "No main claim is settled yet."
    columns = ["system", "claim", "paper", "here, with 95 % interval", "verdict", "depends on"]
    return f"{sentence}\n\n{table(columns, rows)}"


def _more_seeds(claim: dict[str, Any], seeds: int) -> str:
    if claim["verdict"] != "not settled":
        return ""
    needed = claim["seeds_for_power_now"]
    if needed <= seeds:
        return f"; a difference of {claim['effect']:g} would have been found"
    return f"; {needed:,} seeds would find a difference of {claim['effect']:g}"


def how() -> str:
    """For each file: the command, how the seeds were chosen, what was seen before, whether the baseline had settled."""
    parts = []
    for system in SYSTEMS:
        for found in _settled(system.id):
            text = (
                f"- `{found['command']}`: {found['environment'].get('data') or found['system']}; "
                f"{len(found['seeds'])} seeds, chosen by {found['seeds_chosen_by']}; "
                f"{found['seconds'] / 60:.0f} minutes. Seen before: {found['looked_at_before']}."
            )
            plateau = found["plateau"]
            if plateau:
                reached = "moves" if plateau["reached"] else "is not at its plateau: it moves"
                text += (
                    f" Trained twice as long, the baseline {reached} from {plateau['at_budget']:.4g} to "
                    f"{plateau['twice_as_long']:.4g} ({plateau['baseline']}, {plateau['number']})."
                )
            parts.append(text)
    return "\n".join(parts)


PARTS = {"claims": claims, "how": how}
"""Parts of the page that are made from results, by the name in the comment before them."""
