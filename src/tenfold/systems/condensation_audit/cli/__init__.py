"""What the command line offers of this room."""

from tenfold.systems.condensation_audit.cli.auditing import audit, calibrate
from tenfold.systems.condensation_audit.cli.condensing import condense, quality, redteam
from tenfold.systems.condensation_audit.cli.serving import evaluate, export, predict
from tenfold.systems.condensation_audit.cli.set_files import export_set, import_official, import_set, verify

__all__ = ["VERBS", "evaluate", "export", "import_official", "predict"]

VERBS = {
    "condense": condense,
    "quality": quality,
    "audit": audit,
    "redteam": redteam,
    "calibrate": calibrate,
    "verify": verify,
    "import-set": import_set,
    "export-set": export_set,
}
