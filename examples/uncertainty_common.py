"""What the examples of activation uncertainty share: small main models, trained in seconds on embedded data."""

import torch
from torch import nn

from tenfold.systems.activation_uncertainty import ActivationUncertainty, ensemble_labels
from tenfold.systems.activation_uncertainty.data.task_data import load_task
from tenfold.systems.activation_uncertainty.main_models.networks import RatingNetwork, image_mlp
from tenfold.systems.activation_uncertainty.network.calling import call


def train(model, data, loss, epochs, batch_size):
    """Train a main model."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = data.training_batches(batch_size, seed=0)
    for _ in range(epochs):
        for inputs, labels in batches:
            optimizer.zero_grad()
            loss(call(model, inputs), labels).backward()
            optimizer.step()
    return model.eval()


def digits_with_uncertainty():
    """A digit classifier that says how unsure it is: the data, the learner, the served model."""
    torch.manual_seed(0)
    data = load_task("digits", auxiliary=500)
    model = image_mlp(num_classes=10, image_shape=(1, 8, 8), widths=(64, 32), rate=0.2)
    train(model, data, nn.functional.cross_entropy, epochs=15, batch_size=64)
    learner = ActivationUncertainty(model, data.example).fit(data.numbered("auxiliary"), select=True)
    return data, learner, learner.serve()


def ratings_with_ensemble_uncertainty(members=5):
    """A rating model that estimates how far an ensemble of its kind would disagree (paper B), on generated ratings."""
    data = load_task("ratings", rows=12_000, auxiliary=2000)
    models = []
    for member in range(members):
        torch.manual_seed(member)
        model = RatingNetwork(data.model_facts["sizes"], widths=(64, 32, 16), rate=0.1)
        models.append(train(model, data, nn.functional.mse_loss, epochs=6, batch_size=256))
    learner = ActivationUncertainty(models[0], data.example)
    labels = ensemble_labels(models, lambda: data.numbered("auxiliary"), learner.target, features=learner.features)
    return data, learner.fit(labels, loss="mse_std").serve()
