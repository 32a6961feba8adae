"""The wrapper for the Adversarial Robustness Toolbox."""

import numpy as np
import pytest
import torch

from tenfold.errors import UserError
from tenfold.systems.condensation_audit import to_art
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.networks.factories import make_network, seeded_network

SHAPE = (3, 8, 8)
COLOUR = Preprocessing((0.4, 0.5, 0.3), (0.2, 0.3, 0.25), SHAPE)


@pytest.fixture
def network():
    return seeded_network(lambda: make_network("mlp", image_shape=SHAPE, num_classes=4, width=16), 0)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (6, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_art_sees_pixels_and_its_attacks_stay_among_them(network, pixels):
    evasion = pytest.importorskip("art.attacks.evasion")
    classifier = to_art(network, COLOUR, 4)
    x = pixels.numpy().astype(np.float32) / 255
    with torch.no_grad():
        expected = network(COLOUR.normalize(pixels))
    assert np.allclose(classifier.predict(x), expected.numpy(), atol=1e-5)
    moved = evasion.FastGradientMethod(classifier, eps=0.2).generate(x)
    assert moved.min() >= 0
    assert moved.max() <= 1
    labels = expected.argmax(1)
    losses = [
        torch.nn.functional.cross_entropy(torch.from_numpy(classifier.predict(images)), labels) for images in (x, moved)
    ]
    assert losses[1] > losses[0]


def test_probabilities_where_a_defence_takes_them_for_granted(network, pixels):
    pytest.importorskip("art")
    answers = to_art(network, COLOUR, 4, probabilities=True).predict(pixels.numpy().astype(np.float32) / 255)
    assert np.allclose(answers.sum(1), 1, atol=1e-5)


def test_without_art_one_line_says_what_to_install(network, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "art.estimators.classification", None)
    with pytest.raises(UserError, match=r"tenfold\[art\]"):
        to_art(network, COLOUR, 4)
