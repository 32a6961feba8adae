"""What the command line does with activation uncertainty: with a finished run, or with a main model of the user's."""

from collections.abc import Callable

from tenfold.systems.activation_uncertainty.cli.fit import fit
from tenfold.systems.activation_uncertainty.cli.import_predictions import import_official
from tenfold.systems.activation_uncertainty.cli.label import label
from tenfold.systems.activation_uncertainty.cli.on_runs import evaluate, export, predict
from tenfold.systems.activation_uncertainty.cli.score import score

__all__ = ["VERBS", "evaluate", "export", "import_official", "predict"]

VERBS: dict[str, Callable] = {"label": label, "fit": fit, "score": score}
