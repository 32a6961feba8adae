"""The smallest experiments that settle the paper's main claim: skips from all shallower levels, fused adaptively."""

from dataclasses import replace

from tenfold.settling import MainClaim, Trial
from tenfold.systems.full_skip_depth.experiment.settings import PRESETS

_PAPER = "lower error than same-resolution skips with the same encoder; the abstract gives no figures for it"


def _trial(data: str, looked_at: str) -> Trial:
    small = PRESETS["small"]
    return Trial(
        config=replace(small, arms=["unet", "fscn-equal"], data=replace(small.data, name=data, also=[])),
        claims=(
            MainClaim(f"{data}-abs-rel-fscn-unet", effect=3.0, paper=_PAPER, depends="thin structures in the scenes"),
            MainClaim(f"{data}-abs-rel-fscn-equal-unet", effect=3.0, paper=_PAPER, depends="equal parameters"),
        ),
        looked_at=looked_at,
        longer={"optimizer.epochs": 2 * small.optimizer.epochs},
        plateau=("unet", "abs_rel"),
        scale=100.0,
    )


TRIALS = {
    "full-skip-depth-rooms": _trial("rooms", "preset small with seeds 0 to 2"),
    "full-skip-depth-drive": _trial("drive", "preset small with seeds 0 to 2"),
}
