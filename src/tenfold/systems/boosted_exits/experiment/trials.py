"""The smallest experiments that settle the paper's main claims."""

from dataclasses import replace

from tenfold.settling import MainClaim, Trial
from tenfold.systems.boosted_exits.experiment.settings import PRESETS

_PAPER = "CIFAR-100, MSDNet: up to +3.0 points at exits 2 to 5, +0.3 at the last (official plots)"

TRIALS = {
    "boosted-exits": Trial(
        config=replace(PRESETS["small"], arms=["joint"]),
        claims=(
            MainClaim("area-joint", effect=0.5, paper=_PAPER, depends="network and budget of training"),
            MainClaim("later-exits", effect=0.5, paper=_PAPER, depends="number of exits"),
            MainClaim(
                "budgeted",
                effect=0.5,
                paper="CIFAR-100, MSDNet, best of the budgeted curve: about 74.7 to about 75.8 (official plots)",
            ),
        ),
        looked_at="preset small with seeds 0 to 4, these claims among ten: area +0.45 (-0.27 to +1.18)",
        longer={"optimizer.epochs": 32, "optimizer.milestones": [16, 24]},
        plateau=("joint", "area"),
    )
}
