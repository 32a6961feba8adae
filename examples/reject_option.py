"""Answer only when sure enough: a threshold on the uncertainty, chosen on held-out data for a target error."""

import torch

from uncertainty_common import digits_with_uncertainty


def main(target_error=0.01):
    """Choose the threshold on the auxiliary rows, apply it to the test rows."""
    data, _, served = digits_with_uncertainty()

    def errors_and_uncertainty(part):
        scores = [served.score(inputs) for inputs, _ in data.numbered(part)]
        wrong = torch.cat([score.prediction for score in scores]).argmax(-1) != data.labels(part)
        return wrong, torch.cat([score.uncertainty for score in scores])

    wrong, uncertainty = errors_and_uncertainty("auxiliary")
    order = uncertainty.argsort()
    risk = wrong[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    kept = int((risk <= target_error).nonzero().max()) if (risk <= target_error).any() else 0
    threshold = float(uncertainty[order[kept]])
    wrong, uncertainty = errors_and_uncertainty("test")
    answered = uncertainty <= threshold
    print(f"threshold {threshold:.4f}: answers {answered.double().mean():.1%} of the test rows")
    print(f"error of all answers {wrong.double().mean():.2%}, of those given {wrong[answered].double().mean():.2%}")
    return wrong, answered


if __name__ == "__main__":
    main()
