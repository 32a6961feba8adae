"""The smallest experiments that settle the paper's main claim: skips from all shallower levels, fused adaptively."""

from dataclasses import replace

from tenfold.settling import MainClaim, Trial
from tenfold.systems.full_skip_depth.experiment.settings import PRESETS

_PAPER = (
    "skips of one resolution ignore what the encoder loses on its way down, full skips bring it back: state of the art "
    "on KITTI and NYU Depth v2 (the abstract, which gives no figures)"
)


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
        scale=500.0,  # the claims are in per cent of the U-Net's abs rel, which is about 0.2 here
    )


TRIALS = {
    "full-skip-depth-rooms": _trial("rooms", "preset small with seeds 0 to 2"),
    "full-skip-depth-drive": _trial("drive", "preset small with seeds 0 to 2"),
}
