"""What the command line offers of relation distillation."""

from tenfold.systems.relation_distillation.cli.bench import bench
from tenfold.systems.relation_distillation.cli.convert import convert
from tenfold.systems.relation_distillation.cli.distil import chain, distil
from tenfold.systems.relation_distillation.cli.evaluate import evaluate
from tenfold.systems.relation_distillation.cli.export import export
from tenfold.systems.relation_distillation.cli.finetune import finetune
from tenfold.systems.relation_distillation.cli.import_official import import_official
from tenfold.systems.relation_distillation.cli.predict import predict
from tenfold.systems.relation_distillation.cli.segment import segment
from tenfold.systems.relation_distillation.cli.sweep import sweep

__all__ = ["VERBS", "evaluate", "export", "import_official", "predict"]

VERBS = {
    "distil": distil,
    "chain": chain,
    "finetune": finetune,
    "sweep": sweep,
    "segment": segment,
    "convert": convert,
    "bench": bench,
}
