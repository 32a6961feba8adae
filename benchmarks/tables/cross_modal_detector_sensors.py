"""The world's table on the page of what happens when a sensor dies."""

from tables.cross_modal_detector import cases_of, head_of
from tables.markdown import RESULTS
from tenfold.results import load_results

PAGE = "docs/when-a-sensor-dies.md"


def sensors() -> str:
    """Scores of the preset small, with and without sensors."""
    results = load_results(RESULTS / "cross-modal-detector-small.json")
    return head_of(results, "tenfold run cross-modal-detector --preset small --seeds 1") + "\n\n" + cases_of(results)


PARTS = {"sensors": sensors}
