"""What the command line does with runs and models of the cross-modal detector, a file for every verb or two."""

from tenfold.systems.cross_modal_detector.cli.delivering import export, import_official
from tenfold.systems.cross_modal_detector.cli.examining import doctor, frames
from tenfold.systems.cross_modal_detector.cli.failing import robustness
from tenfold.systems.cross_modal_detector.cli.predicting import predict
from tenfold.systems.cross_modal_detector.cli.scoring import evaluate, score

__all__ = ["VERBS", "evaluate", "export", "import_official", "predict"]

VERBS = {"robustness": robustness, "doctor": doctor, "frames": frames, "score": score}
