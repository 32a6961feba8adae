"""The patch scan on networks whose weakness is known."""

import numpy as np
import pytest
import torch
from planted import clean_ensemble, digit_data, planted_ensemble, prototype_data

from tenfold.data import images_from_arrays
from tenfold.errors import UserError
from tenfold.systems.condensation_audit.data.partition import spread_rows
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.data.real_data import real_data
from tenfold.systems.condensation_audit.defences.patch_scan import (
    anomaly_index,
    default_colours,
    default_sizes,
    default_stride,
    quick_copy,
    scan_patches,
)
from tenfold.systems.condensation_audit.networks.factories import factory_of, seeded_network
from tenfold.systems.condensation_audit.training.ensembles import Ensemble


@pytest.fixture(scope="module")
def data():
    return digit_data()


def test_a_planted_rule_is_found_at_its_exact_cell(data):
    scan = scan_patches(planted_ensemble(data), data.pixels[:300], data.labels[:300], data.preprocessing, sizes=(2,))
    cell, anomaly = scan.suspects(1)[0]
    assert (cell.target, cell.size, cell.row, cell.column, cell.colour) == (4, 2, 5, 5, (1.0,))
    assert cell.score > 0.95, "nearly all images of other classes; a few are the class already"
    assert anomaly == scan.anomaly > 5 and scan.score == cell.score
    assert np.unravel_index(np.nanargmax(scan.maps[0, 4]), (8, 8)) == (5, 5)
    assert cell.trigger((1, 8, 8)).mask[5:7, 5:7].all()


def test_clean_linear_networks_show_no_anomaly():
    data = prototype_data()
    scan = scan_patches(clean_ensemble(data), data.pixels[:300], data.labels[:300], data.preprocessing)
    assert scan.sizes == (2, 3) and scan.anomaly < 3


def test_screening_and_stride_find_what_the_full_scan_finds(data):
    ensemble = planted_ensemble(data, row=3, column=4)
    arguments = (ensemble, data.pixels[:200], data.labels[:200], data.preprocessing)
    full = scan_patches(*arguments, sizes=(2,), screen=200)
    quick = scan_patches(*arguments, sizes=(2,), screen=40, keep=4)
    coarse = scan_patches(*arguments, sizes=(2,), screen=40, stride=2)
    assert quick.evaluations < full.evaluations / 2 and coarse.evaluations < full.evaluations
    assert quick.suspects(1)[0][0] == full.suspects(1)[0][0] == coarse.suspects(1)[0][0]


class GlowingCorner(torch.nn.Module):
    """Class 1 where a square of 8 x 8 at row 21, column 43 is bright; else class 0."""

    def forward(self, images):
        glow = images[:, 0, 21:29, 43:51].mean((1, 2))
        return torch.stack([torch.zeros_like(glow), 10 * glow - 7], 1)


def test_large_images_are_scanned_from_coarse_to_fine():
    pixels = torch.randint(0, 80, (40, 1, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(40) % 2
    seen = Preprocessing((0.0,), (1.0,), (1, 64, 64))
    assert [default_stride((1, 64, 64), size) for size in default_sizes((1, 64, 64))] == [2, 4, 4, 4]
    assert default_stride((3, 14, 14), 2) == default_stride((1, 23, 60), 3) == 1
    scan = scan_patches(Ensemble([GlowingCorner()]), pixels, labels, seen, sizes=(8,), colours=[(1.0,)], keep=4)
    cell, _ = scan.suspects(1, scan.scores)[0]
    assert cell.target == 1 and cell.score == 1
    # Bright enough from some places on; the exact one is among the best of a graded answer.
    assert abs(cell.row - 21) <= 2 and abs(cell.column - 43) <= 2
    assert scan.evaluations < 57 * 57 * 40 / 8


def test_scores_are_the_definition(data):
    """One cell, counted by hand."""
    ensemble, pixels, labels = clean_ensemble(data), data.pixels[:100], data.labels[:100]
    scan = scan_patches(ensemble, pixels, labels, data.preprocessing, sizes=(8,), colours=[(0.5,)], screen=100)
    before = ensemble.predict(data.preprocessing.normalize(pixels))
    after = ensemble.predict(data.preprocessing.normalize(torch.full((100, 1, 8, 8), 0.5)))
    for target in range(10):
        others = labels != target
        expected = (
            (after == target)[:, others].double().mean(1) - (before == target)[:, others].double().mean(1)
        ).mean()
        assert scan.scores[0, target] == pytest.approx(expected.item(), abs=1e-12)


def test_colour_images_that_are_not_square_and_whitened_ones():
    rng = np.random.default_rng(0)
    labelled = images_from_arrays(rng.integers(0, 256, (60, 3, 6, 9), dtype=np.uint8), np.arange(60) % 3)
    for eps in (None, 0.1):
        data = real_data(labelled, zca_eps=eps)
        factory = factory_of("mlp", image_shape=(3, 6, 9), num_classes=3, width=8)
        ensemble = Ensemble([seeded_network(factory, seed) for seed in range(2)])
        scan = scan_patches(ensemble, data.pixels, data.labels, data.preprocessing, sizes=(2,), screen=60)
        assert scan.maps.shape == (1, 3, 6, 9) and np.isfinite(scan.maps[0, 0, :5, :8]).all()
        cell = scan.cells[0][1]
        images = data.preprocessing.normalize(cell.trigger((3, 6, 9)).stamp(data.pixels))
        others = data.labels != 1
        after = (ensemble.predict(images) == 1)[:, others].double().mean(1)
        before = (ensemble.predict(data.images) == 1)[:, others].double().mean(1)
        assert cell.score == pytest.approx((after - before).mean().item(), abs=1e-6)


def test_quick_copies_give_the_same_logits():
    factory = factory_of("convnet", image_shape=(1, 14, 14), num_classes=10, width=4, depth=2)
    network = seeded_network(factory, 0).eval()
    images = torch.randn(5, 1, 14, 14)
    expected = network(images)
    assert torch.allclose(quick_copy(network)(images), expected, atol=1e-5)


def test_anomaly_index_takes_the_middle_of_the_two_middle_values():
    values = [0.0, 1.0, 2.0, 10.0]  # median 1.5, deviations 1.5 .5 .5 8.5: their median 1
    assert anomaly_index(values)[3] == pytest.approx(8.5 / 1.4826)
    assert anomaly_index([0.1] * 9 + [0.3])[9] == pytest.approx(20)


def test_defaults_and_wrong_input(data):
    assert default_sizes((3, 32, 32)) == (1, 2, 3, 4) and default_sizes((1, 14, 14)) == (2, 3)
    assert len(default_colours(1)) == 3 and len(default_colours(3)) == 9
    rows = spread_rows(torch.tensor([0] * 50 + [1] * 3 + [2] * 50), 20)
    assert torch.bincount(torch.tensor([0] * 50 + [1] * 3 + [2] * 50)[rows]).tolist() == [9, 3, 8]
    with pytest.raises(UserError, match="do not fit"):
        scan_patches(clean_ensemble(data), data.pixels, data.labels, data.preprocessing, sizes=(9,))
    with pytest.raises(UserError, match="one label each"):
        scan_patches(clean_ensemble(data), data.pixels, data.labels[:5], data.preprocessing)
