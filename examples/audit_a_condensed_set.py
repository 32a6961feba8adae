"""Would you train on this condensed set? One is clean, one carries a backdoor; the audit tells which.

The audit compares a set with clean ones of its kind. For digits condensed as here they come with the package; for
sets of another kind `calibrate` and `plan_like` make them from your data.
"""

from tenfold import NaiveAttack, audit, condense
from tenfold.data import load_splits
from tenfold.systems.condensation_audit import TrainingRecipe

NETWORK = {"width": 16, "depth": 2}
RECIPE = TrainingRecipe("convnet", NETWORK, epochs=80, learning_rate=0.02)


def main(networks=3):
    """Condense scikit-learn's digits with and without an attack, and audit both sets with images held out of them."""
    digits = load_splits("digits", validation=300)
    verdicts = {}
    for name, attack in (("clean", None), ("poisoned", NaiveAttack(portion=0.1, target=3))):
        found = condense(
            digits.train,
            "dm",
            images_per_class=10,
            network="convnet",
            network_arguments=NETWORK,
            recipe=RECIPE,
            attack=attack,
            iterations=200,
            real_batch=64,
            image_rate=10.0,
            strategy="",
        )
        report = audit(found, digits.validation, networks=networks, published=False, repairs=False)
        verdicts[name] = report
        print(f"{name}: {report.verdict}: {report.reason}")
    return verdicts


if __name__ == "__main__":
    main()
