"""Pages of results: one self-contained HTML file each, which opens without a network.

``write_report`` is the page of one run, ``write_index`` links the pages of several, ``write_comparison`` sets several
runs side by side. A page holds its style, its script and, where something is plotted, plotly.js; its
Content-Security-Policy forbids everything else.
"""

from tenfold.report.pages import IndexEntry, differences, write_comparison, write_index, write_report

__all__ = ["IndexEntry", "differences", "write_comparison", "write_index", "write_report"]
