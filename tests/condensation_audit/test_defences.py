"""The published defences on networks and features with known answers (trap 20)."""

import math

import numpy as np
import pytest
import torch
from planted import LinearNet, SmoothRule, clean_ensemble, digit_data, planted_ensemble, prototype_data
from torch import nn

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.attacks.success import attack_success
from tenfold.systems.condensation_audit.attacks.triggers import patch_mask, white_patch
from tenfold.systems.condensation_audit.defences.activation_clustering import activation_clustering
from tenfold.systems.condensation_audit.defences.fine_pruning import fine_prune, fine_tune
from tenfold.systems.condensation_audit.defences.neural_cleanse import neural_cleanse, small_norm_anomalies
from tenfold.systems.condensation_audit.defences.neuron_stimulation import stimulate_neurons
from tenfold.systems.condensation_audit.defences.range_guard import RangeGuard, check_range
from tenfold.systems.condensation_audit.defences.spectral_signatures import spectral_signatures
from tenfold.systems.condensation_audit.defences.strip import blend_entropies, strip
from tenfold.systems.condensation_audit.training.ensembles import Ensemble


@pytest.fixture(scope="module")
def data():
    return digit_data()


class Constant(nn.Module):
    """Always the same logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        return self.logits.expand(len(images), -1) + 0 * images.flatten(1).sum(1, keepdim=True)


# --- Neural Cleanse ---------------------------------------------------------------------------------------------


def test_neural_cleanse_recovers_a_planted_patch():
    mask = patch_mask((1, 12, 12), 2)
    data = prototype_data(quiet=mask)
    network = SmoothRule(LinearNet(data), data.preprocessing, mask, 4)
    found = neural_cleanse(network, data.pixels[:100], data.preprocessing, epochs=60)
    assert found.flagged == [4]
    assert found.norms[4] <= 4.5 and found.score == found.anomalies[4] > 2
    images = data.preprocessing.normalize(found.trigger(4).stamp_valid(data.pixels))
    assert attack_success(network(images).argmax(1), data.labels, 4) > 0.9
    assert all(parameter.grad is None for parameter in network.parameters())


def test_neural_cleanse_without_any_mask_says_so(data):
    found = neural_cleanse(Constant([0.0, 50.0, 0.0]), data.pixels[:40], data.preprocessing, epochs=3)
    assert np.isinf(found.norms[[0, 2]]).all() and found.flagged == [] and found.score == -np.inf
    assert found.trigger(0) is None


def test_the_median_is_that_of_the_middle_two():
    norms = np.array([1.0, 4.0, 6.0, 7.0])  # median 5; deviations 4 1 1 2: 1.5
    assert small_norm_anomalies(norms)[0] == pytest.approx(4 / (1.4826 * 1.5))
    assert (small_norm_anomalies(np.array([1.0, np.inf, np.inf])) == -np.inf).all()


# --- STRIP ------------------------------------------------------------------------------------------------------


def test_strip_entropies_of_constant_networks(data):
    images = data.images[:30]
    sure = blend_entropies(Constant([0.0, 200.0, 0.0, 0.0]), images, data.images[30:60])
    even = blend_entropies(Constant([0.3] * 4), images, data.images[30:60])
    assert torch.allclose(sure, torch.zeros(30, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(even, torch.full((30,), math.log(4), dtype=torch.float64), atol=1e-6)


def test_strip_flags_triggered_inputs_and_few_clean_ones(data):
    network = planted_ensemble(data, networks=1, target=4).member(0)
    # Half of a white patch must still be one: the rule asks for 80 % of white, so the planted network is made laxer.
    network.white = network.white * 0.25
    stamped = data.preprocessing.normalize(white_patch((1, 8, 8), 2, 5, 5).stamp(data.pixels[600:700]))
    clean = data.images[:400]
    triggered, usual = strip(network, stamped, clean), strip(network, data.images[700:900], clean)
    assert triggered.score > 0.9 and usual.score < 0.15
    with pytest.raises(UserError, match="at least 4"):
        strip(network, stamped, clean[:2])


# --- clusters and signatures ------------------------------------------------------------------------------------


def two_groups(n=60, poisoned=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2 * n, 16, generator=generator)
    features[:poisoned] += 12  # class 0 has a second group
    return features, torch.arange(2).repeat_interleave(n)


def test_activation_clustering_finds_the_second_group():
    features, labels = two_groups()
    found = activation_clustering(features, labels)
    assert found.classes[0].flagged and found.classes[0].smaller == tuple(range(9))
    assert found.classes[0].smaller_share == pytest.approx(9 / 60) and found.classes[0].silhouette > 0.5
    assert found.classes[1].silhouette < 0.2 and found.score == found.classes[0].silhouette


def test_few_images_are_not_judged():
    features, labels = two_groups(n=19, poisoned=3)
    clusters = activation_clustering(features, labels)
    assert clusters.flagged == [] and "not enough samples" in clusters.classes[0].note and math.isnan(clusters.score)
    signatures = spectral_signatures(features, labels)
    assert not signatures.flagged.any() and len(signatures.notes) == 2


def test_spectral_signatures_do_not_depend_on_the_origin():
    features, labels = two_groups()
    found, moved = spectral_signatures(features, labels), spectral_signatures(features + 1000.0, labels)
    assert torch.allclose(found.scores, moved.scores, rtol=1e-3, atol=1e-3)
    assert found.flagged[:9].all() and found.flagged.sum() == 18  # ceil(1.5 * .1 * 60) of each class
    assert found.ratios[0] > 2 * found.ratios[1]


@pytest.mark.parametrize("defence", [activation_clustering, spectral_signatures])
def test_features_that_do_not_fit(defence):
    with pytest.raises(UserError, match="must fit"):
        defence(torch.zeros(5, 3), torch.zeros(4, dtype=torch.int64))


# --- neurons ----------------------------------------------------------------------------------------------------


class NeuronBackdoor(nn.Module):
    """A clean linear network with one more feature: a neuron that a white patch wakes and that drives class 7."""

    def __init__(self, clean, mask, preprocessing):
        super().__init__()
        self.clean = clean.requires_grad_(False)
        self.detector = nn.Linear(64, 1)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Linear(65, 10)
        white = preprocessing.highest.item()
        with torch.no_grad():
            self.detector.weight.copy_(mask.float().view(1, -1) / white)
            self.detector.bias.fill_(-3.2)
            self.last.weight[:, :64] = clean.classifier.weight
            self.last.weight[:, 64] = 0
            self.last.weight[7, 64] = 40
            self.last.bias.copy_(clean.classifier.bias)

    def forward(self, images):
        flat = images.flatten(1)
        return self.last(torch.cat([flat, self.relu(self.detector(flat))], 1))


def test_stimulation_finds_the_neuron_and_its_trigger(data):
    mask = white_patch((1, 8, 8), 2, 5, 5).mask
    network = NeuronBackdoor(LinearNet(data), mask, data.preprocessing).eval()
    found = stimulate_neurons(network, data.pixels[:80], data.labels[:80], data.preprocessing, largest_mask=6)
    best = found.candidates[0]
    assert 7 in found.flagged and best.target == 7 and best.success >= 0.88
    assert any(candidate.target == 7 and candidate.neuron in (0, 64) for candidate in found.candidates)
    assert best.trigger.mask.sum() <= 6 and best.trigger.excess <= 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


# --- repairs and range ------------------------------------------------------------------------------------------


def test_fine_pruning_removes_a_sleeping_neuron(data):
    mask = white_patch((1, 8, 8), 2, 5, 5).mask
    network = NeuronBackdoor(LinearNet(data), mask, data.preprocessing).eval()
    stamped = data.preprocessing.normalize(white_patch((1, 8, 8), 2, 5, 5).stamp(data.pixels[600:]))
    before = attack_success(network(stamped).argmax(1), data.labels[600:], 7)
    # The detector sleeps on images whose patch is not white all over.
    repaired = fine_prune(network, data.images[:300], data.labels[:300], epochs=0, tolerance=0.02)
    after = attack_success(repaired.network(stamped).argmax(1), data.labels[600:], 7)
    assert before > 0.8 and after < 0.3 and repaired.pruned >= 1 and repaired.units == 65
    assert repaired.accuracy_after >= repaired.accuracy_before - 0.02
    assert network.last.weight[7, 64] == 40, "the given network is not changed"
    tuned = fine_tune(network, data.images[:300], data.labels[:300], epochs=2)
    assert not tuned.training and not torch.equal(tuned.last.weight, network.last.weight)


def test_range_guard(data):
    pixels = torch.rand(6, 1, 8, 8)
    pixels[2, 0, 1, 1], pixels[4, 0, 0, 0] = 31.0, -0.5
    found = check_range(pixels)
    assert found.flagged.tolist() == [False, False, True, False, True, False] and found.score == 30
    network = LinearNet(data)
    guard = RangeGuard(network, data.preprocessing)
    assert torch.equal(guard(pixels), network(data.preprocessing.normalize(pixels.clamp(0, 1))))
    assert torch.equal(guard(data.pixels[:5]), network(data.images[:5]))
    with pytest.raises(UserError, match="2 of 6 inputs"):
        RangeGuard(network, data.preprocessing, "refuse")(pixels)


def test_clean_networks_pass_the_guards(data):
    assert not check_range(data.pixels).flagged.any()
    ensemble = clean_ensemble(data, 1)
    assert isinstance(ensemble, Ensemble) and ensemble.accuracy(data.images, data.labels) > 0.9
