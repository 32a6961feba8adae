"""What the command line offers of the dual encoder."""

from tenfold.systems.dual_encoder.cli.asking import ask, search
from tenfold.systems.dual_encoder.cli.delivering import export, import_official
from tenfold.systems.dual_encoder.cli.indexing import index
from tenfold.systems.dual_encoder.cli.predicting import evaluate, predict

VERBS = {
    "index": index,
    "ask": ask,
    "search": search,
}

__all__ = ["VERBS", "evaluate", "export", "import_official", "predict"]
