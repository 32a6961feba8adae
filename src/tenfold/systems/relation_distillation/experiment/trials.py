"""The smallest experiments that settle the paper's main claims."""

from dataclasses import replace

from tenfold.settling import MainClaim, Trial
from tenfold.systems.relation_distillation.experiment.settings import PRESETS

_SMALL = PRESETS["small"]

TRIALS = {
    "relation-distillation": Trial(
        config=replace(
            _SMALL, arms=["scratch", "feature-qkv"], finetune=replace(_SMALL.finetune, longer=0, few_labels=10)
        ),
        claims=(
            MainClaim(
                "feature-qkv",
                effect=1.0,
                paper="ViT-S on ImageNet: 83.0 with relations, 80.8 with the best feature as target",
                depends="size of teacher and student, length of pre-training",
            ),
            MainClaim(
                "scratch",
                effect=1.0,
                paper="ViT-S on ImageNet: 83.0 distilled, 79.9 trained from scratch",
                depends="number of labels: fewer labels, larger gain",
            ),
        ),
        looked_at="preset small with seeds 0 to 2: -0.42 (-1.66 to +0.83) over features, +2.0 (-1.1 to +5.2) over "
        "training from scratch",
        longer={"finetune.epochs": 48},
        plateau=("scratch", "accuracy"),
    )
}
