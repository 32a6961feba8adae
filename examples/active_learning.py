"""Which rows should be labelled next? The most uncertain ones: from one pass, and from Monte-Carlo passes."""

import torch

from tenfold.systems.activation_uncertainty import overlap_at
from uncertainty_common import digits_with_uncertainty


def main(k=50):
    """Choose k of the test rows by each method and compare the choices with those of 100 passes."""
    data, learner, served = digits_with_uncertainty()
    pool = list(data.numbered("test"))
    ours = torch.cat([served.score(inputs).uncertainty for inputs, _ in pool])
    reference = learner.label(pool, passes=100, seed=1).uncertainty
    overlaps = {"one pass": overlap_at(k, ours, reference)}
    for passes in (5, 20):
        overlaps[f"{passes} passes"] = overlap_at(
            k, learner.label(pool, passes=passes, seed=2 + passes).uncertainty, reference
        )
    for name, overlap in overlaps.items():
        print(f"{name:>10}: {overlap:.0%} of the {k} rows that 100 passes choose")
    return overlaps


if __name__ == "__main__":
    main()
