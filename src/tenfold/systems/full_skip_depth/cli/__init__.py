"""What the command line does with runs and models of full-skip depth, a file for every verb or two."""

from tenfold.systems.full_skip_depth.cli.calibrating import calibrate
from tenfold.systems.full_skip_depth.cli.delivering import export, import_official, kitti_zip
from tenfold.systems.full_skip_depth.cli.examining import doctor, sources
from tenfold.systems.full_skip_depth.cli.predicting import predict, predict_onnx
from tenfold.systems.full_skip_depth.cli.projecting import project
from tenfold.systems.full_skip_depth.cli.scoring import evaluate, evaluate_transformers, protocols, score

__all__ = ["VERBS", "evaluate", "export", "import_official", "predict", "predict_onnx"]

VERBS = {
    "score": score,
    "protocols": protocols,
    "doctor": doctor,
    "calibrate": calibrate,
    "project": project,
    "kitti-zip": kitti_zip,
    "sources": sources,
    "evaluate-transformers": evaluate_transformers,
}
