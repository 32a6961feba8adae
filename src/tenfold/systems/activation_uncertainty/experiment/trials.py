"""The smallest experiments that settle the paper's main claims."""

from dataclasses import replace

from tenfold.settling import MainClaim, Trial
from tenfold.systems.activation_uncertainty.experiment.settings import PRESETS

TRIALS = {
    "activation-uncertainty": Trial(
        config=replace(PRESETS["small"], companions=["ratings"], ensemble=0, joint=False, ablations=False),
        claims=(
            MainClaim(
                "equivalent-fashion-mnist",
                effect=5.0,
                paper="one pass estimates the variation of dropout; the abstracts give no number of passes",
                depends="activations that are used; the chosen layer does better than all",
            ),
            MainClaim(
                "strength-fashion-mnist",
                effect=0.05,
                paper="activation strength, not only which units are on, tells uncertainty; no figures known",
            ),
            MainClaim(
                "prediction-fashion-mnist",
                effect=0.05,
                paper="activations tell uncertainty in various tasks; no figures known",
                depends="task: nothing is added on ratings, where the prediction says it already",
            ),
        ),
        looked_at="preset small with seeds 0 to 2: 21.9 passes (13 to 37), +0.056 and +0.120 of R2",
    )
}
