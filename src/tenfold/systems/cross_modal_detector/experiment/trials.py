"""The smallest experiment that settles the paper's main claims: no worse with all sensors, far better without one."""

from dataclasses import replace

from tenfold.settling import MainClaim, Trial
from tenfold.systems.cross_modal_detector.experiment.settings import PRESETS

TRIALS = {
    "cross-modal-detector-world": Trial(
        config=replace(PRESETS["small"], arms=["plain"]),
        claims=(
            MainClaim(
                "no-lidar-drop",
                effect=3.0,
                paper="one fusion model on nuScenes: NDS 44.7 without LiDAR, 72.9 with all sensors (official figures)",
                depends="how much the small image network has learnt of depth",
            ),
            MainClaim(
                "no-cameras-drop",
                effect=3.0,
                paper="the same model: NDS 68.1 without cameras (official figures)",
                depends="how much of the class the cloud alone shows",
            ),
            MainClaim(
                "all-sensors",
                effect=2.0,
                paper="masked-modal training costs nothing with all sensors (section 3.5)",
                depends="the number of steps: half of the masked arm's samples lack a sensor",
            ),
        ),
        looked_at="preset small with seed 0",
        longer={"optimizer.epochs": 2 * PRESETS["small"].optimizer.epochs},
        plateau=("plain", "ap_2m, both"),
        scale=100.0,
    )
}
