"""What the command line offers of the dual encoder."""

from tenfold.systems.dual_encoder.cli.asking import ask, search
from tenfold.systems.dual_encoder.cli.bench import bench
from tenfold.systems.dual_encoder.cli.checklists import checklist
from tenfold.systems.dual_encoder.cli.delivering import export, import_official
from tenfold.systems.dual_encoder.cli.indexing import index
from tenfold.systems.dual_encoder.cli.predicting import evaluate, predict
from tenfold.systems.dual_encoder.cli.serving import serve

VERBS = {
    "index": index,
    "ask": ask,
    "search": search,
    "checklist": checklist,
    "serve": serve,
    "bench": bench,
}

__all__ = ["VERBS", "evaluate", "export", "import_official", "predict"]
