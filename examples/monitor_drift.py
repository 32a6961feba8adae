"""Watch a served model: the mean uncertainty of each day, and the share of inputs far from the auxiliary data."""

import torch

from uncertainty_common import digits_with_uncertainty


def main(days=6):
    """Serve the test rows day by day while a sensor fails slowly; the report that would raise an alarm."""
    data, _, served = digits_with_uncertainty()
    rows = torch.cat([inputs for inputs, _ in data.numbered("test")])
    report = []
    for day in range(days):
        noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(day))
        scores = served.score(rows + day * noise)
        report.append((day, float(scores.uncertainty.mean()), float(scores.far.float().mean())))
        print(f"day {day}: mean uncertainty {report[-1][1]:.4f}, far from the data {report[-1][2]:.1%}")
    return report


if __name__ == "__main__":
    main()
