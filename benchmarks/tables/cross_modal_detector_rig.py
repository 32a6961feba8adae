"""The drive's table on the page of a rig of one's own."""

from tables.cross_modal_detector import cases_of, head_of
from tables.markdown import RESULTS
from tenfold.results import load_results

PAGE = "docs/rig-of-your-own.md"


def drive() -> str:
    """Scores of the preset small-drive."""
    results = load_results(RESULTS / "cross-modal-detector-small-drive.json")
    return head_of(results, "tenfold run cross-modal-detector --preset small-drive") + "\n\n" + cases_of(results)


PARTS = {"drive": drive}
