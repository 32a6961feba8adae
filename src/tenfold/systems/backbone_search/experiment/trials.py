"""The smallest experiments that settle the paper's main claims."""

from dataclasses import replace

from tenfold.settling import MainClaim, Trial
from tenfold.systems.backbone_search.experiment.settings import PRESETS

_SMALL = PRESETS["small"]

TRIALS = {
    "backbone-search": Trial(
        config=replace(_SMALL, arms=["mobiledet"], search=replace(_SMALL.search, controls=[])),
        claims=(
            MainClaim(
                "found-mobiledet",
                effect=2.0,
                paper="+2.0 mAP over MobileDet at equal cost, on data of its own",
                depends="length of the final training",
            ),
            MainClaim(
                "mapping",
                effect=5.0,
                paper="mapped weights make candidates comparable after little tuning",
                depends="length of the tuning",
            ),
        ),
        looked_at="preset small with seeds 0 to 2",
    )
}
