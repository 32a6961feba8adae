"""What the command line does with a finished run or a model folder of boosted exits."""

from tenfold.systems.boosted_exits.cli.evaluate import evaluate, predict, predict_onnx
from tenfold.systems.boosted_exits.cli.export import export, import_official
from tenfold.systems.boosted_exits.cli.thresholds import costs, thresholds

VERBS = {"thresholds": thresholds, "costs": costs}

__all__ = ["VERBS", "costs", "evaluate", "export", "import_official", "predict", "predict_onnx", "thresholds"]
