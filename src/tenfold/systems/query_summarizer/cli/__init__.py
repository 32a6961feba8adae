"""What the command line offers of the query summarizer."""

from tenfold.systems.query_summarizer.cli.export import export, import_official
from tenfold.systems.query_summarizer.cli.labels import labels
from tenfold.systems.query_summarizer.cli.rouge import rouge
from tenfold.systems.query_summarizer.cli.rows import rows
from tenfold.systems.query_summarizer.cli.sparse import sparse_apply, sparse_diff, sparse_info
from tenfold.systems.query_summarizer.cli.summarize import evaluate, predict, summarize
from tenfold.systems.query_summarizer.cli.wikiref import build_wikiref

VERBS = {
    "summarize": summarize,
    "labels": labels,
    "rows": rows,
    "rouge": rouge,
    "build-wikiref": build_wikiref,
    "sparse-diff": sparse_diff,
    "sparse-apply": sparse_apply,
    "sparse-info": sparse_info,
}

__all__ = ["VERBS", "build_wikiref", "evaluate", "export", "import_official", "labels", "predict", "rouge", "summarize"]
