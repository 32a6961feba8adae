"""The smallest experiments that settle the papers' main claims about condensation and its attacks."""

from dataclasses import replace

from tenfold.settling import MainClaim, Trial
from tenfold.systems.condensation_audit.experiment.settings import PRESETS

TRIALS = {
    "condensation-audit": Trial(
        config=replace(PRESETS["small"], images_per_class=[10]),
        claims=(
            MainClaim(
                "dm-random-10",
                effect=3.0,
                paper="better networks than from as many real images; Fashion-MNIST, DC, 10 per class: 82.3 %",
                depends="images per class and side of the images",
            ),
            MainClaim(
                "naive-some",
                effect=20.0,
                paper="NaiveAttack: decent success in some cases (abstract)",
                depends="share of poisoned images: one in a hundred does little",
            ),
            MainClaim(
                "accuracy-doorping",
                effect=1.5,
                paper="the attack keeps the clean accuracy (abstract: success close to 1.0 in all cases)",
            ),
        ),
        looked_at="preset small with seeds 0 to 2: +5.2 (+0.7 to +9.7), +54 (+16 to +92), -0.1 (-1.4 to +1.1)",
    )
}
