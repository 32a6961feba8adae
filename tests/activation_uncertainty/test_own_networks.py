"""Networks and batches of a reader's own: what is an input is said, what cannot be computed is refused."""

import json
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty import (
    ActivationUncertainty,
    Batch,
    DropoutController,
    Target,
    dropout_labels,
    find_dropout,
    load_estimator,
)
from tenfold.systems.activation_uncertainty.network.calling import call

RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(64, 8, generator=RANDOM)
REGRESSION = Target("regression")


class TwoTowers(nn.Module):
    """Users and items, two inputs by position."""

    def __init__(self):
        super().__init__()
        self.users, self.items = nn.Embedding(30, 8), nn.Embedding(500, 8)
        self.hidden = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))

    def forward(self, users, items):
        return self.hidden(torch.cat([self.users(users), self.items(items)], 1))


def mlp(outputs=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, outputs)).eval()


def test_two_integer_inputs_are_both_inputs():
    torch.manual_seed(0)
    users, items = torch.randint(0, 30, (64,)), torch.randint(0, 500, (64,))
    model = TwoTowers()
    learner = ActivationUncertainty(model, (users[:2], items[:2]), passes=5)
    labels = learner.label([(users, items)])
    assert labels.ids.tolist() == list(range(64))
    torch.testing.assert_close(labels.output, model.eval()(users, items).flatten().detach())
    assert learner.label([[users, items]]).output.equal(labels.output)  # a loader's list is as good as a tuple
    three = learner.label([(users, items, users)], parts=["inputs", "inputs", "labels"])
    assert three.output.equal(labels.output)
    named = learner.label([Batch((users, items), users + 2**60)])
    assert named.ids.equal(users + 2**60)
    assert learner.fit([(users, items)], epochs=1).serve()(users, items)[1].shape == (64,)


def test_labels_of_a_loader_are_not_taken_for_ids():
    model = mlp(3)
    loader = DataLoader(TensorDataset(X, torch.randint(0, 3, (64,))), 32)
    learner = ActivationUncertainty(model, X[:2], passes=5)
    with pytest.raises(UserError, match="say what its parts are"):
        learner.fit(loader)
    assert learner.label(loader, parts=["inputs", "labels"]).ids.tolist() == list(range(64))
    by_id = learner.label([(X, torch.arange(100, 164))], parts=["inputs", "ids"])
    assert by_id.ids[0] == 100
    texts = learner.label([Batch(X[:3], ["c", "C0600", "a"])])
    assert texts.ids.tolist() == ["c", "C0600", "a"]


@pytest.mark.parametrize(
    ("parts", "batch", "message"),
    [
        (["inputs", "rows"], (X, X), "inputs, ids and labels; got 'rows'"),
        (["ids", "labels"], (X, X), "none of them are inputs"),
        (["inputs", "ids", "ids"], (X, X, X), "ids come once"),
        (["inputs", "labels"], X, "2 parts, but a batch is a tensor"),
        ({"y": "labels"}, {"x": X}, "names y"),
        (["inputs", "ids"], (X, torch.rand(64)), "does not hold every whole number"),
        (["inputs", "ids"], (X, torch.arange(3)), "64 rows need as many ids"),
        (None, (X, X), "built as the example"),
    ],
)
def test_wrong_parts_get_one_line(parts, batch, message):
    with pytest.raises(UserError, match=message):
        ActivationUncertainty(mlp(), X[:2], passes=2).label([batch], parts=parts)


class OneDict(nn.Module):
    """Takes a batch as one mapping."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, batch):
        return self.net(batch["x"] + batch["y"])


def test_one_mapping_is_the_networks_one_argument():
    model = OneDict()
    rows = {"x": X, "y": X * 0}
    learner = ActivationUncertainty(model, {name: value[:2] for name, value in rows.items()}, passes=10)
    labels = learner.label([rows, {name: value[:0] for name, value in rows.items()}])  # batches without rows add none
    torch.testing.assert_close(labels.output, model.eval()(rows).flatten().detach())
    prediction, uncertainty = learner.fit(labels, epochs=2).serve()(rows)
    assert prediction.shape == (64, 1)
    assert uncertainty.shape == (64,)
    assert learner.serve().score({name: value[:0] for name, value in rows.items()}).uncertainty.shape == (0,)
    far = learner.serve().score({"x": X * torch.nan, "y": X})
    assert far.far.all()  # NaN is no input like those of the fit
    with pytest.raises(UserError, match="cannot be called on 2 values in a tuple"):
        call(mlp(), (X, X))
    with pytest.raises(UserError, match=r"TwoTowers takes \(users, items\); the inputs are 3 values"):
        call(TwoTowers(), (X, X, X))
    with pytest.raises(UserError, match="cannot be called on a tensor"):
        call(mlp(), X[:, :5])
    with pytest.raises(UserError, match="holds no rows"):
        ActivationUncertainty(mlp(), X[:0])


class Rates(nn.Module):
    """Two functional dropouts in one forward, of which each has a rate of its own."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 1)

    def forward(self, x):
        x = F.dropout(F.relu(self.a(x)), self.first, self.training)
        return self.c(F.dropout(F.relu(self.b(x)), self.second, self.training))


class AsModules(Rates):
    """The same with modules."""

    def __init__(self, first, second):
        super().__init__(first, second)
        self.d, self.e = nn.Dropout(first), nn.Dropout(second)

    def forward(self, x):
        return self.c(self.e(F.relu(self.b(self.d(F.relu(self.a(x)))))))


def spread(model, x=X, target=REGRESSION, **options):
    return dropout_labels(model, [x], DropoutController(model, x, **options), target, passes=3000).uncertainty.mean()


def test_each_functional_dropout_keeps_its_own_rate():
    model = Rates(0.05, 0.5)
    assert [(site.kind, site.rate) for site in find_dropout(model, X)] == [("functional", 0.05), ("functional", 0.5)]
    assert spread(model) == pytest.approx(float(spread(AsModules(0.05, 0.5))), rel=0.05)
    for places, rates in (("first", (0.05, 0)), ("last", (0, 0.5))):
        assert spread(model, places=places) == pytest.approx(float(spread(AsModules(*rates))), rel=0.05)
    assert spread(model, rate=0.2) == pytest.approx(float(spread(AsModules(0.2, 0.2))), rel=0.05)


class Kernel(nn.Module):
    """Attention whose kernel drops weights beside a functional dropout of the same rate."""

    def __init__(self, rate=0.3):
        super().__init__()
        self.rate = rate
        torch.manual_seed(0)
        self.query, self.norm, self.last = nn.Linear(8, 8), nn.BatchNorm1d(5), nn.Linear(8, 1)

    def weights(self, q):
        return F.scaled_dot_product_attention(q, q, q, dropout_p=self.rate if self.training else 0.0)

    def forward(self, x):
        y = self.norm(self.weights(self.query(x)[:, None])[:, 0])
        return self.last(F.dropout(y, self.rate, self.training).mean(1))


class ByHand(Kernel):
    """The same attention, written out with a module that drops."""

    def __init__(self, rate=0.3):
        super().__init__(rate)
        self.drop = nn.Dropout(rate)

    def weights(self, q):
        return self.drop((q @ q.transpose(-1, -2) / 8**0.5).softmax(-1)) @ q


def test_attention_kernels_drop_beside_functional_dropout():
    tokens = torch.randn(32, 5, 8, generator=RANDOM)
    model = Kernel()
    assert {(site.kind, site.attention) for site in find_dropout(model, tokens)} == {
        ("functional", False),
        ("owner", True),
    }
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert spread(model, tokens) == pytest.approx(float(spread(ByHand(), tokens)), rel=0.05)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    attention = DropoutController(model, tokens, sites=[s for s in find_dropout(model, tokens) if s.attention])
    one = dropout_labels(model, [tokens], attention, REGRESSION, passes=3000).uncertainty.mean()
    assert 0 < one < 0.9 * spread(model, tokens)  # the functional dropout beside it stays off


def test_a_prediction_that_is_random_in_eval_mode_is_refused():
    class Always(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return self.net(F.dropout(x, 0.5))

    with pytest.raises(UserError, match=r"random in eval mode, too \(dropout at 'the model itself' ignores it\)"):
        ActivationUncertainty(Always(), X[:8])


def test_positional_masks_and_batch_encodings_keep_the_mask():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=32, num_labels=3)  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    ids, mask = torch.randint(1, 50, (40, 7)), torch.ones(40, 7, dtype=torch.long)
    mask[::2, 3:] = 0
    rows = {"input_ids": ids, "attention_mask": mask}
    encoding = transformers.BatchEncoding(rows)
    learner = ActivationUncertainty(model, {name: value[:2] for name, value in rows.items()}, passes=10)
    labels = learner.label([rows])
    assert learner.label([encoding]).features.equal(labels.features)
    served = learner.fit(labels, epochs=2).serve()
    expected = served(**rows)[1]
    for found in (served(ids, mask)[1], served(**encoding)[1], served.score(encoding).uncertainty,
                  served.score((ids, mask)).uncertainty):  # fmt: skip
        assert found.equal(expected)
    by_position = ActivationUncertainty(model, (ids[:2], mask[:2]), passes=10).label([(ids, mask)])
    assert by_position.features.equal(labels.features)


def test_padding_masks_of_torch_are_true_where_a_token_is_not():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
            self.last = nn.Linear(8, 1)

        def forward(self, src, src_key_padding_mask=None):
            return self.last(self.layer(src, src_key_padding_mask=src_key_padding_mask)[:, 0])

    model = Encoder()
    short = torch.randn(30, 4, 8, generator=RANDOM)
    padded = torch.cat([short, torch.randn(30, 3, 8, generator=RANDOM)], 1)
    mask = (torch.arange(7) >= 4).expand(30, 7)
    read = [
        ActivationUncertainty(model, tuple(value[:2] for value in rows), passes=2).label([rows]).features
        for rows in ((short, mask[:, :4] & False), (padded, mask))
    ]
    torch.testing.assert_close(read[0], read[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_main_model_of_another_precision_fits_and_serves(dtype, tmp_path):
    model, rows = mlp(3).to(dtype), X.to(dtype)
    learner = ActivationUncertainty(model, rows[:4], passes=10).fit([rows], epochs=2)
    prediction, uncertainty = learner.serve()(rows)
    assert prediction.equal(model(rows))
    assert uncertainty.isfinite().all()
    learner.save(tmp_path)
    assert load_estimator(tmp_path, model)(rows)[1].equal(uncertainty)


def test_threads_share_one_served_model():
    served = ActivationUncertainty(mlp(), X[:4], passes=10).fit([X], epochs=2).serve()
    parts = X.split(16)
    expected = [served.score(part).uncertainty for part in parts]
    wrong = []

    def ask(n):
        for _ in range(60):
            try:
                if not served.score(parts[n]).uncertainty.equal(expected[n]):
                    wrong.append("another number")
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_probes_of_the_fingerprint_stay_in_each_columns_table(tmp_path):
    """Columns of different sizes in one tensor, as click logs have them."""

    class Tables(nn.Module):
        def __init__(self, sizes):
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(size, 4) for size in sizes)
            self.hidden = nn.Sequential(nn.Linear(4 * len(sizes), 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))

        def forward(self, categories):
            columns = [table(categories[:, n]) for n, table in enumerate(self.tables)]
            return self.hidden(torch.cat(columns, 1))

    torch.manual_seed(0)
    sizes = (3, 1000, 2, 40)
    rows = torch.stack([torch.randint(0, size, (64,)) for size in sizes], 1)
    rows[:2] = torch.tensor([[2, 999, 1, 39], [0, 998, 0, 30]])
    model = Tables(sizes).eval()
    learner = ActivationUncertainty(model, rows[:2], passes=5).fit([rows], epochs=2)
    learner.save(tmp_path)
    load_estimator(tmp_path, model)
    probe = json.loads((tmp_path / "estimator.json").read_text())["fingerprint"]["probe"]
    assert probe["high"] == [1, 511, 1, 31]  # no row of the reader's
    with torch.no_grad():
        model.tables[1].weight += 0.5
    with pytest.raises(UserError, match="further training"):
        load_estimator(tmp_path, model)

    class FromOne(Tables):  # 0 stands in no table: the weights alone are compared
        def forward(self, categories):
            if (categories < 1).any():
                raise IndexError("categories count from 1")
            return super().forward(categories - 1)

    other = FromOne(sizes).eval()
    ActivationUncertainty(other, rows[:2] + 1, passes=5).fit([rows + 1], epochs=2).save(tmp_path / "other")
    load_estimator(tmp_path / "other", other)
    with torch.no_grad():
        other.tables[0].weight += 0.5
    with pytest.raises(UserError, match="weights differ"):
        load_estimator(tmp_path / "other", other)
