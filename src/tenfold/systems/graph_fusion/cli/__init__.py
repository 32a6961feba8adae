"""What the command line does with a finished run or a model folder of graph fusion."""

from tenfold.systems.graph_fusion.cli.complete import complete
from tenfold.systems.graph_fusion.cli.evaluate import evaluate
from tenfold.systems.graph_fusion.cli.explain import explain
from tenfold.systems.graph_fusion.cli.export import export
from tenfold.systems.graph_fusion.cli.graphs import describe, sparsify
from tenfold.systems.graph_fusion.cli.import_official import import_official
from tenfold.systems.graph_fusion.cli.predict import predict
from tenfold.systems.graph_fusion.cli.predictions import predictions, rescore

__all__ = ["VERBS", "evaluate", "export", "import_official", "predict"]

VERBS = {
    "describe": describe,
    "sparsify": sparsify,
    "complete": complete,
    "explain": explain,
    "predictions": predictions,
    "rescore": rescore,
}
