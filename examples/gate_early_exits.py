"""Leave early only when sure: an early-exit network whose first exit is gated by its dropout uncertainty.

Two systems work together through their public names: the exits and stages are those of boosted exits, the gate is an
estimator fitted on the first exit alone.
"""

import torch
from torch import nn

from tenfold import ActivationUncertainty, BoostedExitLoss, EarlyExitModel
from uncertainty_common import load_task


class FirstExit(nn.Module):
    """The network up to its first exit, as a model of its own."""

    def __init__(self, network):
        super().__init__()
        self.stage, self.head = network.stages[0], network.heads[0]

    def forward(self, x):
        """Logits of the first exit."""
        return self.head(self.stage(x))


def main(share=0.6):
    """Let the surest share of the images leave at exit 1, by uncertainty and by confidence."""
    torch.manual_seed(0)
    data = load_task("digits", auxiliary=500)
    stages = [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.2)),
        nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 64), nn.ReLU()),
    ]
    network = EarlyExitModel(stages, [nn.Linear(24, 10), nn.Linear(64, 10)], reweight=0.5)
    loss, optimizer = BoostedExitLoss(reweight=0.5), torch.optim.Adam(network.parameters(), lr=2e-3)
    batches = data.training_batches(64, seed=0)
    for _ in range(12):
        for images, labels in batches:
            optimizer.zero_grad()
            loss(network(images), labels).total.backward()
            optimizer.step()
    network.eval()
    gate = ActivationUncertainty(FirstExit(network), data.example).fit(data.numbered("auxiliary")).serve()

    images, truth = torch.cat([inputs for inputs, _ in data.numbered("test")]), data.labels("test")
    with torch.no_grad():
        first, last = network.ensemble(network(images))
        _, uncertainty = gate(images)
    count = int(share * len(images))
    accuracies = {}
    for name, doubt in (("uncertainty", uncertainty), ("confidence", -first.softmax(-1).amax(-1))):
        leaves = torch.zeros(len(images), dtype=torch.bool)
        leaves[doubt.argsort()[:count]] = True
        answers = torch.where(leaves[:, None], first, last).argmax(-1)
        accuracies[name] = float((answers == truth).double().mean())
        print(f"{share:.0%} leave at exit 1 by {name}: {accuracies[name]:.1%} correct")
    print(f"all at the last exit: {float((last.argmax(-1) == truth).double().mean()):.1%} correct")
    return accuracies


if __name__ == "__main__":
    main()
