"""What the command line does with a run of backbone search, and its own verbs."""

from tenfold.systems.backbone_search.cli.doctor import doctor
from tenfold.systems.backbone_search.cli.evaluate import evaluate
from tenfold.systems.backbone_search.cli.export import export
from tenfold.systems.backbone_search.cli.front import front, promote
from tenfold.systems.backbone_search.cli.import_official import import_official
from tenfold.systems.backbone_search.cli.latency import latency
from tenfold.systems.backbone_search.cli.predict import predict, predict_onnx
from tenfold.systems.backbone_search.cli.worker import worker

VERBS = {"doctor": doctor, "front": front, "promote": promote, "latency": latency, "worker": worker}

__all__ = ["VERBS", "evaluate", "export", "import_official", "predict", "predict_onnx"]
