"""Dropout on and off: what is found, what is random, what is left as it was."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty import Batch, DropoutController, Target, dropout_labels, find_dropout
from tenfold.systems.activation_uncertainty.labels.prefix_cache import PrefixCache

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
REGRESSION, CLASS = Target("regression"), Target("class")


class Functional(nn.Module):
    """Functional dropout in a forward that owns a normalization layer."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x):
        h = F.dropout(F.relu(self.norm(self.first(x)), inplace=True), 0.4, self.training)
        return self.last(h)


class Attention(nn.Module):
    """Dropout that is asked for only while training, inside the attention kernel."""

    def __init__(self):
        super().__init__()
        self.query, self.norm, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        q = self.query(x)[:, None]
        y = F.scaled_dot_product_attention(q, q, q, dropout_p=0.3 if self.training else 0.0)
        return self.last(self.norm(y[:, 0].mean(1)))


def mlp(rate=0.3, outputs=1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Dropout(rate), nn.Linear(16, outputs)
    )


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 3))


TOKENS = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("model", "x", "kinds"),
    [
        (mlp(), X, {"module"}),
        (Functional(), X, {"functional"}),
        (Attention(), TOKENS, {"owner"}),
        (encoder(), TOKENS, {"attention", "module"}),
        (nn.Sequential(nn.Flatten(), nn.Linear(40, 8), nn.AlphaDropout(0.2), nn.Linear(8, 2)), TOKENS, {"module"}),
    ],
)
def test_every_kind_of_dropout_is_found_switched_on_and_leaves_no_trace(model, x, kinds):
    model.train()
    model[0].eval() if isinstance(model, nn.Sequential) else model.norm.eval()
    flags = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    assert {site.kind for site in find_dropout(model, x)} == kinds
    controller = DropoutController(model, x)
    target = REGRESSION if isinstance(model, nn.Sequential) and model[-1].out_features == 1 else CLASS
    labels = dropout_labels(model, [x], controller, target, passes=20)
    assert (labels.spread > 0).all()
    with pytest.raises(RuntimeError, match="stop"), controller.on(seed=1):
        raise RuntimeError("stop")
    assert {name: module.training for name, module in model.named_modules()} == flags
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Own(nn.Module):
    """A layer that is random in training in a way of its own."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def forward(self, x):
        return self.noise(x) if self.training else x


@pytest.mark.parametrize(
    "noise",
    [
        lambda x: x * torch.bernoulli(torch.full_like(x, 0.8)),
        lambda x: torch.where(torch.rand_like(x) < 0.1, torch.zeros_like(x), x),
        lambda x: x * x.new_empty(x.shape).bernoulli_(0.5),
        lambda x: x + 0.1 * torch.randn(x.shape),
        lambda x: x * torch.from_numpy(np.random.rand(*x.shape) < 0.9),  # noqa: NPY002 (as networks have it)
        lambda x: x if random.random() < 0.5 else 2 * x,
        lambda x: F.multi_head_attention_forward(
            x[:, None], x[:, None], x[:, None], 8, 1, torch.eye(8).repeat(3, 1), None, None, None, False, 0.5,
            torch.eye(8), None,
        )[0][:, 0],
        lambda x: F.rrelu(x, training=True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("beside", [True, False])
def test_what_a_network_drops_in_a_way_of_its_own_is_never_left_out_in_silence(noise, beside):
    """Found by what it does: the passes of training differ though all known dropout is off."""
    own = nn.Sequential(nn.Linear(8, 8), Own(noise), nn.Dropout(0.3 * beside), nn.Linear(8, 1)).train()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with pytest.raises(UserError, match=r"random numbers in training.*F\.dropout"):
        DropoutController(own, X)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert (np.random.get_state()[1] == states[1]).all() and own[2].p == 0.3 * beside  # noqa: NPY002
    if beside:  # who names what counts has said so
        assert [site.path for site in DropoutController(own, X, places="2").sites] == ["2"]


def test_random_numbers_that_decide_nothing_are_no_dropout():
    """As a layer drop of rate 0, which draws all the same."""
    network = nn.Sequential(nn.Linear(8, 8), Own(lambda x: x if torch.rand([]) >= 0 else 0 * x), nn.Dropout(0.3))
    assert [site.path for site in DropoutController(network, X).sites] == ["2"]


def test_transformers_and_timm_are_found_functional_attention_included():
    transformers = pytest.importorskip("transformers")
    timm = pytest.importorskip("timm")
    bert = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                intermediate_size=32, num_labels=3)
    )  # fmt: skip
    batch = {"input_ids": torch.randint(0, 50, (4, 7)), "attention_mask": torch.ones(4, 7, dtype=torch.long)}
    sites = find_dropout(bert, batch)
    attention = [site for site in sites if "attention.self" in site.path]
    assert len(attention) == 2
    assert {site.kind for site in attention} == {"owner"}
    only = DropoutController(bert, batch, places=[attention[0].path])
    assert (dropout_labels(bert, [batch], only, CLASS, passes=10).spread > 0).all()

    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, drop_rate=0.1, drop_path_rate=0.2)
    images = torch.randn(2, 3, 32, 32)
    plain, with_paths = find_dropout(vit, images), find_dropout(vit, images, drop_path=True)
    assert {site.kind for site in plain} == {"module"}
    paths = [site.path for site in with_paths if site.kind == "drop-path"]
    assert paths
    only = DropoutController(vit, images, places=paths, drop_path=True)
    assert (dropout_labels(vit, [images], only, CLASS, passes=30).spread > 0).any()


def test_monte_carlo_variance_is_the_closed_form():
    """Scaling, side of the scaling, divisor."""
    torch.manual_seed(0)  # wide, so that outputs are nearly Gaussian
    model = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 1))
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(2))
    labels = dropout_labels(model, [x], DropoutController(model, x), REGRESSION, passes=4000)
    hidden = model[:2](x).detach()
    exact = 0.3 / 0.7 * (hidden**2) @ (model[-1].weight.detach()[0] ** 2)
    expected = 0.8 * (2 / 4000) ** 0.5
    assert ((labels.spread - exact) / exact).abs().mean() == pytest.approx(expected, rel=0.15)


def test_one_unit_gives_the_two_point_distribution():
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.4), nn.Linear(1, 1))
    x = torch.tensor([[1.0], [2.0]])
    labels = dropout_labels(model, [x], DropoutController(model, x), REGRESSION, passes=20_000)
    exact = (model[2].weight * model[0](x)).abs()[:, 0] * (0.4 / 0.6) ** 0.5
    torch.testing.assert_close(labels.uncertainty, exact.detach(), rtol=0.03, atol=0)


def test_rates_and_places():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    assert [site.path for site in DropoutController(model, X, places="first").sites] == ["1"]
    assert [(s.path, s.rate) for s in DropoutController(model, X, places="last", rate=0.2).sites] == [("3", 0.2)]
    with DropoutController(model, X, places=["3"], rate=0.2).on(seed=0):
        assert (model[1].training, model[3].training, model[3].p) == (False, True, 0.2)
    assert (model[1].training, model[3].training, model[3].p) == (True, True, 0.5)
    for arguments, message in (
        ({"places": ["2"]}, "no dropout at '2'; there is: 1, 3"),
        ({"rate": 0.0}, "above 0 and below 1"),
        ({"rate": 1.0}, "above 0 and below 1"),
        ({"add": ["7"], "rate": 0.1}, "no module '7'"),
        ({"add": ["2"]}, "needs a rate"),
    ):
        with pytest.raises(UserError, match=message):
            DropoutController(model, X, **arguments)
    functional = Functional()
    changed = dropout_labels(functional, [X], DropoutController(functional, X, rate=0.01), CLASS, passes=200)
    own = dropout_labels(functional, [X], DropoutController(functional, X), CLASS, passes=200)
    assert changed.uncertainty.mean() < 0.5 * own.uncertainty.mean()


def test_dropout_that_is_added():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    with pytest.raises(UserError, match="no dropout"):
        DropoutController(model, X)
    hidden = DropoutController(model, X, add=["1"], rate=0.2)
    assert hidden.inference_only
    labels = dropout_labels(model, [X], hidden, REGRESSION, passes=4000)
    exact = 0.25 * (model[:2](X) ** 2) @ (model[2].weight[0] ** 2)
    torch.testing.assert_close(labels.spread, exact.detach(), rtol=0.15, atol=1e-6)
    inputs = DropoutController(model, X, add=["inputs"], rate=0.2)
    assert PrefixCache(inputs, X).modules == []
    assert (dropout_labels(model, [X], inputs, REGRESSION, passes=10).spread > 0).all()
    words = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 1))
    ids = torch.randint(0, 5, (3, 3))
    assert [s.path for s in DropoutController(words, ids, add="embeddings", rate=0.1).sites] == ["0"]
    assert (dropout_labels(words, [ids], DropoutController(words, ids, add="embeddings", rate=0.1), REGRESSION,
                           passes=10).spread > 0).all()  # fmt: skip


@pytest.mark.parametrize("how", ["repeat", "loop", "vmap"])
def test_rows_that_are_the_same_get_masks_of_their_own(how):
    model = mlp()
    same = X[:1].expand(16, 8).contiguous()
    labels = dropout_labels(model, [same], DropoutController(model, same), REGRESSION, passes=5, how=how)
    assert len(labels.spread.unique()) == 16


@pytest.mark.parametrize("model", [mlp(outputs=3), Functional(), Attention()], ids=["modules", "functional", "owner"])
def test_what_comes_before_the_first_dropout_is_computed_once(model):
    x = TOKENS if isinstance(model, Attention) else X
    controller = DropoutController(model, x)
    cache = PrefixCache(controller, x)
    assert cache.modules
    cached = dropout_labels(model, [x], controller, CLASS, passes=50, per_sample=True, how="loop")
    plain = dropout_labels(model, [x], controller, CLASS, passes=50, per_sample=True, how="loop", prefix=False)
    assert torch.equal(cached.spread, plain.spread)  # to the bit, with masks per sample
    apart = [
        dropout_labels(model, [x], controller, CLASS, passes=2000, seed=seed, prefix=prefix)
        for seed, prefix in ((1, True), (2, False))
    ]
    torch.testing.assert_close(apart[0].mean, apart[1].mean, atol=0.03, rtol=0)
    torch.testing.assert_close(apart[0].uncertainty, apart[1].uncertainty, rtol=0.15, atol=1e-4)


def test_prefix_is_not_run_again():
    model = mlp()
    runs = []
    inner = model[0].forward
    model[0].forward = lambda x: runs.append(len(x)) or inner(x)
    dropout_labels(model, [X], DropoutController(model, X), REGRESSION, passes=40, how="loop")
    before = len(runs)
    assert before < 10
    dropout_labels(model, [X], DropoutController(model, X), REGRESSION, passes=400, how="loop")
    assert len(runs) == 2 * before  # as often for ten times the passes: finding, sizing, one clean pass


def test_outputs_changed_in_place_are_recorded_as_they_were():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.drop, self.last = nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3)

        def forward(self, x):
            h = self.first(x)
            h += 1  # not idempotent: a recorded output must not drift from pass to pass
            return self.last(self.drop(h))

    model = InPlace()
    controller = DropoutController(model, X)
    options = {"passes": 30, "per_sample": True, "how": "loop"}
    cached = dropout_labels(model, [X], controller, CLASS, **options)
    plain = dropout_labels(model, [X], controller, CLASS, prefix=False, **options)
    assert torch.equal(cached.spread, plain.spread)


@pytest.mark.parametrize("model", [mlp(outputs=3), encoder()], ids=["mlp", "encoder"])
def test_masks_per_sample_do_not_depend_on_the_batch(model):
    x = TOKENS if len(model) == 3 else X
    controller = DropoutController(model, x)
    ids = torch.tensor([3, 1, 7, 5])
    x = x[:4]
    whole = dropout_labels(model, [Batch(x, ids)], controller, CLASS, passes=30, per_sample=True)
    order = torch.tensor([2, 0, 3, 1])
    single = dropout_labels(
        model, [Batch(x[n : n + 1], ids[n : n + 1]) for n in order], controller, CLASS, passes=30, per_sample=True,
        how="loop",
    )  # fmt: skip
    torch.testing.assert_close(single.spread, whole.spread[order], rtol=1e-3, atol=1e-9)
    other = dropout_labels(model, [Batch(x, ids)], controller, CLASS, passes=30, per_sample=True, seed=1)
    assert not torch.equal(other.spread, whole.spread)


def test_masks_per_sample_are_fair():
    model = nn.Sequential(nn.Dropout(0.3), nn.Flatten())
    x = torch.ones(500, 200)
    controller = DropoutController(model, x)
    from tenfold.systems.activation_uncertainty.network.sample_masks import SampleMasks

    with torch.no_grad(), controller.on(), SampleMasks(0, torch.arange(500)):
        kept = (model(x) > 0).double()
    assert kept.mean() == pytest.approx(0.7, abs=0.005)
    assert kept.mean(1).std() == pytest.approx((0.21 / 200) ** 0.5, rel=0.15)  # rows are independent
    assert kept.mean(0).std() == pytest.approx((0.21 / 500) ** 0.5, rel=0.15)
    assert torch.corrcoef(kept[:20]).triu(1).abs().max() < 0.35


def test_labels_do_not_depend_on_how_passes_are_run():
    model = mlp(outputs=3)
    controller = DropoutController(model, X)
    by = {how: dropout_labels(model, [X], controller, CLASS, passes=3000, how=how) for how in ("loop", "vmap")}
    by["chunks"] = dropout_labels(model, [X], controller, CLASS, passes=3000, memory_limit_mb=0.05)
    for labels in by.values():
        torch.testing.assert_close(labels.uncertainty, by["loop"].uncertainty, rtol=0.1, atol=0)


def test_definitions_of_uncertainty_for_classes():
    model = mlp(outputs=3)
    controller = DropoutController(model, X)
    found = {
        name: dropout_labels(model, [X], controller, Target(name), passes=50)
        for name in ("class", "mean-class", "mutual-information", "kl")
    }
    with torch.no_grad(), controller.on(seed=0):
        passes = torch.stack([model(X).softmax(-1) for _ in range(3000)]).double()
    best = model.eval()(X).argmax(-1)
    mean = passes.mean(0)
    entropies = torch.special.entr(passes).sum(-1)
    by_hand = {
        "class": passes.std(0).gather(1, best[:, None])[:, 0],
        "mean-class": passes.std(0).mean(1),
        "mutual-information": torch.special.entr(mean).sum(-1) - entropies.mean(0),
        "kl": (passes * (passes / mean).log()).sum(-1).mean(0),
    }
    many = {
        name: dropout_labels(model, [X], controller, Target(name), passes=3000).uncertainty.double() for name in found
    }
    for name, expected in by_hand.items():
        torch.testing.assert_close(many[name], expected, rtol=0.1, atol=1e-5)
    torch.testing.assert_close(found["kl"].spread, found["mutual-information"].spread)


def test_wrong_outputs_get_one_line():
    two = mlp(outputs=2)
    with pytest.raises(UserError, match="one number per input"):
        dropout_labels(two, [X], DropoutController(two, X), REGRESSION, passes=2)
    one = mlp()
    with pytest.raises(UserError, match="two or more"):
        dropout_labels(one, [X], DropoutController(one, X), CLASS, passes=2)
    with pytest.raises(UserError, match="at least 2 passes"):
        dropout_labels(one, [X], DropoutController(one, X), REGRESSION, passes=1)
    with pytest.raises(UserError, match="NaN"):
        dropout_labels(one, [X * torch.nan], DropoutController(one, X), REGRESSION, passes=2)
