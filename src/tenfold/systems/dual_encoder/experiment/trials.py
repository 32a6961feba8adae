"""The smallest experiments that settle the paper's main claim: attention between modalities carries over."""

from dataclasses import replace

from tenfold.settling import MainClaim, Trial
from tenfold.systems.dual_encoder.experiment.settings import PRESETS

_PAPER = "about 1 point on NLVR2, SNLI-VE and VQA below the fusion teacher, at 4 times its speed (abstract)"

TRIALS = {
    "dual-encoder": Trial(
        config=replace(PRESETS["small"], arms=["soft", "dide"], data=replace(PRESETS["small"].data, also=[])),
        claims=(
            MainClaim(
                "grid-qa-over-soft",
                effect=3.0,
                paper="the attention adds to the teacher's predictions; its tables' figures are not repeated here",
                depends="networks that start from nothing, on drawn scenes",
            ),
            MainClaim("grid-qa-share-kept", effect=0.02, paper=_PAPER, depends="steps of training"),
        ),
        looked_at="GridQA with seed 0 while the settings were chosen; preset small with seeds 0 to 2",
        longer={"optimizer.steps": 2 * PRESETS["small"].optimizer.steps},
        plateau=("soft", "accuracy"),
    ),
}
