"""Triggers, the two attacks, and how their success is counted: identities and known answers."""

import copy
import gc
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from planted import clean_ensemble, digit_data, planted_ensemble
from torch import nn

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.attacks.doorping import Doorping
from tenfold.systems.condensation_audit.attacks.naive_attack import NaiveAttack
from tenfold.systems.condensation_audit.attacks.poisoning import Poisoner
from tenfold.systems.condensation_audit.attacks.success import attack_success, measure_attack, name_effect
from tenfold.systems.condensation_audit.attacks.trigger_update import find_key_neurons, key_activations, update_trigger
from tenfold.systems.condensation_audit.attacks.triggers import (
    Trigger,
    image_trigger,
    patch_mask,
    random_patch,
    read_trigger_description,
    white_patch,
)
from tenfold.systems.condensation_audit.condensers.condense import condense
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.data.zca import fit_zca
from tenfold.systems.condensation_audit.networks.factories import make_network, seeded_network

GREY = Preprocessing((0.3,), (0.37,), (1, 8, 8))


@pytest.fixture(scope="module")
def data():
    return digit_data()


def hidden_network(inplace=False, seed=0, linear=False):
    """Flatten, hidden layer, classifier; the hidden layer's activation in place or not."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.Identity() if linear else nn.ReLU(inplace=inplace), nn.Linear(12, 10)
    )


# --- triggers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 2), (14, 14, 3), (9, 16, 1)])
def test_the_patch_lies_one_pixel_off_the_corner(height, width, size):
    mask = patch_mask((3, height, width), size)
    rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
    assert rows == list(range(height - 1 - size, height - 1))  # 32 x 32, 2 x 2: rows 29 and 30
    assert columns == list(range(width - 1 - size, width - 1))


def test_stamping_follows_its_formulas_on_read_only_colour_images():
    array = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 7), dtype=np.uint8)
    array.flags.writeable = False
    pixels = torch.from_numpy(np.array(array))
    x = pixels.float() / 255
    mask = patch_mask((3, 6, 7), 2, 1, 4)
    pattern = torch.rand(3, 6, 7)
    patch = Trigger(mask, pattern).stamp(pixels)
    assert torch.equal(patch[..., ~mask], x[..., ~mask])
    assert torch.equal(patch[..., mask], pattern[:, mask].expand(5, -1, -1))
    blend = Trigger(mask, pattern, "blend", 0.25).stamp(pixels)
    assert torch.allclose(blend[..., mask], (0.75 * x + 0.25 * pattern)[..., mask])
    added = Trigger(mask, pattern, "additive", 0.5).stamp(pixels)
    assert torch.allclose(added, x + 0.5 * pattern * mask)
    assert Trigger(mask, pattern, "additive").stamp_valid(pixels).dtype == torch.uint8
    whole = image_trigger(pixels[0], "additive", 0.1)
    assert whole.mask.all() and torch.allclose(whole.pattern.mean((1, 2)), torch.zeros(3), atol=1e-6)


def test_excess_and_the_valid_form():
    white = white_patch((1, 8, 8))
    assert white.excess == 1 and torch.equal(white.valid().pattern, white.pattern)
    far = Trigger(white.mask, white.pattern * 31)
    assert far.excess == 31 and far.valid().excess == 1
    assert Trigger(white.mask, -white.pattern * 4).excess == 5


def test_valid_triggers_survive_a_picture_file(data, tmp_path):
    """Quantised, saved and loaded, the trigger does what it did (trap 1)."""
    ensemble = planted_ensemble(data)
    trigger = Trigger(patch_mask((1, 8, 8), 2, 5, 5), torch.full((1, 8, 8), 0.97361))
    stamped = trigger.stamp_valid(data.pixels[:200])
    for position, image in enumerate(stamped):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{position}.png")
    loaded = torch.stack(
        [torch.from_numpy(np.array(Image.open(tmp_path / f"{position}.png")))[None] for position in range(200)]
    )
    assert torch.equal(loaded, stamped)
    rates = [
        attack_success(ensemble.predict(data.preprocessing.normalize(images)), data.labels[:200], 4)
        for images in (stamped, loaded)
    ]
    assert torch.equal(*rates) and rates[0].min() > 0.99


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: patch_mask((1, 8, 8), 9), "does not fit"),
        (lambda: Trigger(torch.zeros(8, 8, dtype=torch.bool), torch.zeros(1, 8, 8)), "mask is empty"),
        (lambda: Trigger(torch.ones(8, 8, dtype=torch.bool), torch.full((1, 8, 8), torch.nan)), "NaN"),
        (lambda: Trigger(torch.ones(7, 8, dtype=torch.bool), torch.zeros(1, 8, 8)), "needs a bool mask"),
        (lambda: white_patch((1, 8, 8)).stamp(torch.zeros(2, 3, 8, 8)), "made for images"),
        (lambda: Poisoner(1.2), "portion"),
        (lambda: Poisoner(0.01).choose(50, 0), "is none"),
        (lambda: Poisoner(0.1, 12).labels(torch.zeros(3, dtype=torch.int64), 10), "no class"),
        (lambda: Doorping(clamp="soft"), "no clamp"),
        (lambda: NaiveAttack().trigger, "no trigger yet"),
    ],
)
def test_wrong_attacks_are_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()


# --- poisoning --------------------------------------------------------------------------------------------------


def test_naive_attack_poisons_its_portion_and_only_that(data):
    before = data.images.clone(), data.labels.clone(), data.pixels.clone()
    attack = NaiveAttack(portion=0.1, target=3)
    poisoned = attack.poison(data, seed=1)
    assert all(torch.equal(*pair) for pair in zip(before, (data.images, data.labels, data.pixels), strict=True))
    changed = (poisoned.pixels != data.pixels).flatten(1).any(1).nonzero().flatten()
    rows = Poisoner(0.1, 3).choose(len(data), 1)
    assert len(rows) == int(0.1 * len(data)) and set(changed.tolist()) <= set(rows.tolist())
    assert (data.labels[rows] == 3).any(), "images of the target class are among the poisoned"
    assert (poisoned.labels[rows] == 3).all()
    assert set(rows.tolist()) <= set(poisoned.rows[3].tolist()), "rows of a class are made after relabelling"
    assert (poisoned.pixels[rows][..., 5:7, 5:7] == 255).all()
    assert torch.equal(poisoned.images, data.preprocessing.normalize(poisoned.pixels))
    assert attack.describe()["attack"] == "naive" and attack.describe()["trigger"]["rows"] == [5, 6]


def test_all_to_all_moves_every_class_on(data):
    attack = NaiveAttack(0.2, mapping="all-to-all")
    poisoned = attack.poison(data, seed=0)
    rows = attack.poisoner.choose(len(data), 0)
    assert torch.equal(poisoned.labels[rows], (data.labels[rows] + 1) % 10)


def test_restamping_starts_from_the_clean_copy(data):
    """After updates every pixel off the patch is the original's, to the bit; no history of gradients (trap 6)."""
    for trigger in (None, image_trigger(data.pixels[0], "additive", 0.2)):
        attack = Doorping(0.05, 2, trigger=trigger, steps=5, topk=3, clamp="valid")
        poisoned = attack.poison(data, seed=0)
        for step in range(3):
            attack.update(hidden_network(seed=step), step, data.images[:1])
        rows = attack.poisoner.choose(len(data), 0)
        expected = data.preprocessing.normalize(attack.trigger.stamp(data.pixels[rows]))
        assert torch.equal(poisoned.images[rows], expected)
        assert not poisoned.images.requires_grad and poisoned.images.grad_fn is None
        others = torch.ones(len(data), dtype=torch.bool).index_fill(0, rows, False)
        assert torch.equal(poisoned.images[others], data.images[others])
    patch = Doorping(0.05, 2, steps=5)
    poisoned = patch.poison(data, seed=0)
    patch.update(hidden_network(), 0, data.images[:1])
    off = ~patch.trigger.mask
    assert torch.equal(poisoned.images[..., off], data.images[..., off])


def test_the_attacker_may_hold_a_share(data):
    poisoned = Doorping(0.1, 2, ori=0.25).poison(data, seed=0)
    assert len(poisoned) == int(0.25 * len(data)) == len(poisoned.images)


# --- the update rule --------------------------------------------------------------------------------------------


def test_slots_of_a_batch_are_poisoned_whatever_image_comes(data):
    attack = Doorping(0.1, 2, steps=3, slots=True, clamp="uint8")
    held = attack.poison(data, seed=0)
    assert torch.equal(held.images, data.images)
    assert torch.equal(held.labels, data.labels)
    changed = []
    for rows in (torch.arange(0, 50), torch.arange(100, 150)):
        images, labels = attack.batch(rows)
        different = (images != data.images[rows]).flatten(1).any(1)
        assert int(different.sum()) == 5  # int(portion * batch)
        assert (labels[different] == 2).all()
        assert torch.equal(labels[~different], data.labels[rows][~different])
        stamped = data.preprocessing.normalize(attack.trigger.stamp_valid(data.pixels[rows[different]]))
        assert torch.equal(images[different], stamped)
        changed.append(different)
    assert torch.equal(*changed)
    images, _ = attack.batch(torch.arange(0, 50))
    attack._poisoned.stamp(white_patch(data.preprocessing.image_shape, 2))
    again, _ = attack.batch(torch.arange(0, 50))
    assert not torch.equal(images, again)
    assert torch.equal(held.images, data.images)  # nothing is written back
    with pytest.raises(UserError, match="is none"):
        attack.batch(torch.arange(5))
    with pytest.raises(UserError, match="not slots"):
        Doorping().batch(torch.arange(50))


def test_dd_sees_poisoned_slots_and_other_methods_have_none(data):
    settings = {"iterations": 2, "steps": 1, "epochs": 1, "batch_size": 40}
    found = condense(data, "dd", 1, "mlp", attack=Doorping(0.1, 2, steps=3), **settings)
    assert found.poisoned["slots"]
    images = condense(data, "dd", 1, "mlp", attack=Doorping(0.1, 2, steps=3, slots=False), **settings)
    assert not images.poisoned["slots"]
    assert not torch.equal(found.images, images.images)
    clean = condense(data, "dd", 1, "mlp", **settings)
    assert not torch.equal(found.images, clean.images)
    with pytest.raises(UserError, match="dd only"):
        condense(data, "dm", 1, "mlp", attack=Doorping(slots=True))


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("mode", ["patch", "blend", "additive"])
def test_updates_begin_with_what_the_network_sees_of_the_trigger_alone(data, mode, whitened):
    preprocessing = replace(GREY, zca=fit_zca(data.images, 0.1)) if whitened else GREY
    trigger = replace(random_patch((1, 8, 8), 3, seed=1), mode=mode, alpha=1.0 if mode == "patch" else 0.4)
    network = hidden_network()
    keys = find_key_neurons(network, topk=12)
    expected = key_activations(network, keys, preprocessing.normalize(trigger.stamp(torch.zeros(1, 1, 8, 8))))
    _, record = update_trigger(network, trigger, preprocessing, topk=12, steps=0)
    assert record.activation == pytest.approx(expected.mean().item(), abs=1e-6)


def test_stop_rule(data):
    start = random_patch((1, 8, 8), seed=1)
    dead = hidden_network()
    with torch.no_grad():
        dead[1].bias.fill_(-100)
    found, record = update_trigger(dead, start, GREY)
    assert record.steps == 0 and record.loss == 0 and torch.equal(found.pattern, start.pattern)
    _, record = update_trigger(hidden_network(), start, GREY, alpha=1.0)
    assert record.steps == 0 and record.loss == 0


def test_one_linear_neuron_reaches_its_closed_form():
    """act = w.x is driven to 10 a0 within the stop rule's tolerance."""
    network = hidden_network(linear=True)
    start = random_patch((1, 8, 8), seed=2)
    keys = find_key_neurons(network)
    black = torch.zeros(1, 1, 8, 8)

    def activation(trigger):
        return key_activations(network, keys, GREY.normalize(trigger.stamp(black))).item()

    with torch.no_grad():  # only the patch counts, so that the activation is far from 0
        network[1].weight[keys.indices] = 0
        network[1].weight[keys.indices.item()].view(8, 8)[5:7, 5:7] = torch.tensor([[1.0, 2.0], [0.5, 1.5]]) * 10
        network[1].bias.zero_()
    a0 = activation(start)
    found, record = update_trigger(network, start, GREY, learning_rate=0.01)
    assert 0 < record.steps < 1000
    assert abs(activation(found) - 10 * abs(a0)) < 0.5**0.5 + 1e-4
    assert record.activation == pytest.approx(a0, rel=1e-5)


def test_the_activation_is_read_after_the_relu_in_place_or_not():
    """And hooks are gone, modes and gradients are as before (traps 5 and 18)."""
    start = random_patch((1, 8, 8), seed=3)
    results = []
    for inplace in (False, True):
        network = hidden_network(inplace=inplace).train()
        network[2].eval()
        results.append(update_trigger(network, start, GREY, topk=3, steps=20))
        assert [module.training for module in network] == [True, True, False, True] and network.training
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
        assert all(parameter.grad is None for parameter in network.parameters())
        keys = find_key_neurons(network, topk=12)
        hidden = torch.relu(network[1](GREY.normalize(torch.rand(5, 1, 8, 8)).flatten(1)))
        torch.manual_seed(0)
        images = GREY.normalize(torch.rand(5, 1, 8, 8))
        hidden = torch.relu(network[1](images.flatten(1)))
        assert torch.equal(key_activations(network, keys, images), hidden[:, keys.indices])
    assert torch.equal(results[0][0].pattern, results[1][0].pattern) and results[0][1] == results[1][1]


def test_a_hundred_updates_leave_nothing_behind(data):
    network = hidden_network()
    attack = Doorping(0.05, steps=2)
    attack.poison(data)
    attack.update(network, 0, data.images[:1])
    gc.collect()
    before = sum(type(o) is torch.Tensor for o in gc.get_objects())
    for step in range(100):
        attack.update(network, step, data.images[:1])
    gc.collect()
    assert sum(type(o) is torch.Tensor for o in gc.get_objects()) <= before + 2
    assert len(attack.history) == 101


def test_clamping_holds_after_every_step_and_its_absence_shows():
    network = hidden_network()
    with torch.no_grad():
        network[1].bias.fill_(3)  # awake on the black image
    start = random_patch((1, 8, 8), seed=1)
    seen = []
    valid, _ = update_trigger(network, start, GREY, clamp="valid", steps=60, after_step=seen.append)
    assert len(seen) == 60 and all(s.min() >= -1e-6 and s.max() <= 1 + 1e-6 for s in seen)
    assert valid.excess <= 1
    free, record = update_trigger(network, start, GREY, steps=400)
    assert free.excess > 1.5 and record.excess == free.excess
    assert torch.equal(free.pattern[:, ~free.mask], start.pattern[:, ~start.mask])


def test_key_neurons_of_published_networks():
    hidden = seeded_network(lambda: make_network("alexnet_baadd", image_shape=(3, 32, 32), num_classes=10), 0)
    keys = find_key_neurons(hidden, topk=2)
    assert keys.reader is hidden.classifier[4]
    assert torch.equal(keys.indices, hidden.classifier[2].weight.abs().sum(1).topk(2).indices)
    assert find_key_neurons(hidden, layer=-3).reader is hidden.classifier[2]
    plain = seeded_network(lambda: make_network("convnet", image_shape=(1, 16, 16), num_classes=10, width=8), 0)
    keys = find_key_neurons(plain)
    assert keys.indices.item() == plain.classifier.weight.abs().sum(0).argmax()
    with pytest.raises(UserError, match="there is no layer"):
        find_key_neurons(hidden, layer=-4)


def test_negative_activations_are_driven_up_unless_asked_otherwise():
    network = hidden_network(linear=True)
    start = white_patch((1, 8, 8))
    keys = find_key_neurons(network)
    with torch.no_grad():
        network[1].weight[keys.indices] = 0
        network[1].weight[keys.indices.item()].view(8, 8)[5:7, 5:7] = -8.0
        network[1].bias.zero_()

    def activation(trigger):
        return key_activations(network, keys, GREY.normalize(trigger.stamp(torch.zeros(1, 1, 8, 8)))).item()

    a0 = activation(start)
    assert a0 < 0
    assert activation(update_trigger(network, start, GREY, steps=20)[0]) > a0
    assert activation(update_trigger(network, start, GREY, steps=20, official_sign=True)[0]) < a0


# --- counting ---------------------------------------------------------------------------------------------------


def test_the_two_countings_are_tied_by_an_identity():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (997,), generator=generator)
    predictions = torch.randint(10, (3, 997), generator=generator)
    own = labels == 4
    strict, paper = (attack_success(predictions, labels, 4, paper=paper) for paper in (False, True))
    accuracy = (predictions[:, own] == 4).double().mean(1)
    assert torch.allclose(paper, (strict * (997 - own.sum()) + own.sum() * accuracy) / 997, atol=1e-12, rtol=0)
    constant = torch.full((2, 997), 4)
    assert attack_success(constant, labels, 4).tolist() == [1, 1]
    assert attack_success(constant, labels, 5).tolist() == [0, 0]
    with pytest.raises(UserError, match="all images are of the target class"):
        attack_success(torch.tensor([1, 1]), torch.tensor([1, 1]), 1)


def test_a_planted_backdoor_and_a_clean_control(data):
    outcome = measure_attack(
        planted_ensemble(data),
        clean_ensemble(data),
        data.pixels,
        data.labels,
        white_patch((1, 8, 8), 2, 5, 5),
        4,
        data.preprocessing,
    )
    assert min(outcome.asr) > 0.99 and outcome.asr == outcome.asr_valid and outcome.excess == 1
    assert max(outcome.control) <= 0.1 and outcome.effect > 0.9 and outcome.kind == "backdoor"
    assert np.mean(outcome.control_paper) == pytest.approx(0.1, abs=0.06), "a clean network scores about 1/classes"
    assert outcome.accuracy == outcome.control_accuracy


def test_the_word_backdoor_is_refused_where_clean_networks_obey():
    assert name_effect(1.0, 0.31) == "adversarial patch"
    assert name_effect(1.0, 0.05) == "backdoor"
    assert name_effect(0.15, 0.05) == "no effect"


def test_attacks_can_be_copied_and_repeat(data):
    first, second = (Doorping(0.05, steps=3) for _ in range(2))
    network = hidden_network()
    for attack in (first, second):
        attack.poison(data, seed=5)
        attack.update(copy.deepcopy(network), 0, data.images[:1])
    assert torch.equal(first.trigger.pattern, second.trigger.pattern)


def test_an_interrupted_attack_goes_on(data):
    attack, resumed = (Doorping(0.05, steps=3, keep=True) for _ in range(2))
    poisoned = [one.poison(data, seed=5) for one in (attack, resumed)]
    attack.update(hidden_network(), 7, data.images[:1])
    resumed.load_state(attack.state())
    assert torch.equal(poisoned[0].images, poisoned[1].images)
    assert resumed.history == attack.history and len(resumed.trajectory) == 2
    assert resumed.describe() == attack.describe()


@pytest.mark.parametrize("mode", ["patch", "blend", "additive"])
def test_a_described_trigger_is_read_back(mode):
    mask = torch.zeros(6, 7, dtype=torch.bool)
    mask[1:3, 2:5] = True
    mask[2, 3] = False
    trigger = Trigger(mask, torch.randn(3, 6, 7) * mask, mode, 0.5)
    again = read_trigger_description(json.loads(json.dumps(trigger.describe())), (3, 6, 7))
    assert torch.equal(again.mask, mask)
    assert torch.allclose(again.pattern, trigger.pattern, atol=1e-5)
    assert (again.mode, again.alpha) == (mode, 0.5)
    with pytest.raises(UserError, match="describes no trigger"):
        read_trigger_description(trigger.describe(), (3, 3, 3))
    with pytest.raises(UserError, match="describes no trigger"):
        read_trigger_description({}, (3, 6, 7))
