"""Activations found and read: which, where, when, and in which order."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty import ActivationFeatures, find_activations
from tenfold.systems.activation_uncertainty.network.features import read_features

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Functional(nn.Module):
    """Functional activations, in place and not, one after an addition that no module gives."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace
        self.first, self.second, self.third, self.last = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        a = F.relu(self.first(x), inplace=self.inplace)
        b = F.silu(self.second(a), inplace=self.inplace)
        c = torch.relu(self.third(b) + a)
        return self.last(c)


@pytest.mark.parametrize("inplace", [False, True])
def test_functional_activations_are_read_after_the_non_linearity(inplace):
    """In place or not, the feature is the activation."""
    torch.manual_seed(0)
    model = Functional(inplace)
    features = ActivationFeatures(model, X)
    assert list(features.blocks) == ["first|relu", "second|silu"]
    a = F.relu(model.first(X))
    b = F.silu(model.second(a))
    torch.testing.assert_close(read_features(model, [X], features), torch.cat([a, b], 1).detach())


def test_a_shared_activation_is_read_at_each_run():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.act = nn.Linear(8, 4), nn.Linear(4, 5), nn.ReLU(inplace=True)

        def forward(self, x):
            return self.act(self.second(self.act(self.first(x))))

    model = Shared()
    features = ActivationFeatures(model, X)
    assert features.blocks == {"act#0": 4, "act#1": 5}
    read = read_features(model, [X], features)
    assert (read >= 0).all()
    torch.testing.assert_close(read[:, 4:], model(X).detach())
    with pytest.raises(UserError, match="more than once"):
        ActivationFeatures(model, X, taps=["act"])


def test_features_are_taken_without_dropout_whatever_the_flags():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).train()
    features = ActivationFeatures(model, X)
    read = [read_features(model, [X], features) for _ in range(2)]
    assert torch.equal(*read)
    assert model.training
    assert model[2].num_batches_tracked == 0


def test_convolutions_give_mean_maximum_and_share_per_channel():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4), nn.GELU(), nn.Linear(4, 2))
    images = torch.randn(5, 1, 5, 5)
    features = ActivationFeatures(model, images)
    assert features.blocks == {"1": 9, "4": 4}
    maps = model[:2](images).detach().flatten(2)
    expected = torch.cat([maps.mean(2), maps.amax(2), (maps > 0).float().mean(2)], 1)
    torch.testing.assert_close(read_features(model, [images], features)[:, :9], expected)
    on_off = ActivationFeatures(model, images, form="on-off")
    assert on_off.blocks == {"1": 3, "4": 4}
    fires = (model[:4](images) > 0).float()
    torch.testing.assert_close(read_features(model, [images], on_off)[:, 3:], fires)  # GELU: by its input's sign
    both = ActivationFeatures(model, images, form="both", taps=["4"])
    assert both.blocks == {"4": 8}


def test_tokens_are_pooled_over_the_valid_ones():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                intermediate_size=32, num_labels=3)
    )  # fmt: skip
    short = {"input_ids": torch.randint(1, 50, (2, 4)), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    padded = {
        "input_ids": torch.cat([short["input_ids"], torch.zeros(2, 3, dtype=torch.long)], 1),
        "attention_mask": torch.cat([short["attention_mask"], torch.zeros(2, 3, dtype=torch.long)], 1),
    }
    features = ActivationFeatures(bert, short)
    layers = [name for name in features.blocks if "intermediate" in name]
    assert len(layers) == 2
    assert features.blocks[layers[0]] == 64  # mean and share of 32 hidden units
    torch.testing.assert_close(
        read_features(bert, [short], features), read_features(bert, [padded], features), atol=1e-5, rtol=1e-4
    )
    first = ActivationFeatures(bert, short, pool="class-token", taps=layers)
    assert first.width == 64
    per_token = ActivationFeatures(bert, short, pool="tokens", taps=layers)
    assert read_features(bert, [short], per_token).shape == (8, 64)


def test_channels_last_networks_are_read_along_their_channels():
    timm = pytest.importorskip("timm")
    model = timm.create_model("convnext_atto", num_classes=3)
    images = torch.randn(2, 3, 64, 64)
    taps = {tap.path: tap for tap in find_activations(model, images)}
    tap = taps["stages.0.blocks.0.mlp.act"]
    assert ActivationFeatures(model, images, taps=[tap.path]).blocks[tap.path] in (2 * 160, 3 * 160)


def test_order_is_that_of_execution_and_kept_by_name():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    features = ActivationFeatures(model, X, extras=["logits"])
    assert list(features.blocks) == ["1", "3", "logits"]
    again = ActivationFeatures.from_dict(model, features.to_dict())
    assert torch.equal(read_features(model, [X], features), read_features(model, [X], again))
    only = features.only(["logits", "1"])
    assert list(only.blocks) == ["1", "logits"]
    assert torch.equal(read_features(model, [X], only)[:, :4], read_features(model, [X], features)[:, :4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"taps": ["7"]}, "no module '7'"),
        ({"taps": ["1|rleu"]}, "no activation 'rleu'"),
        ({"form": "values"}, "form must be one of"),
        ({"extras": ["everything"]}, "extras are embeddings and logits"),
    ],
)
def test_what_is_not_there_gets_one_line(arguments, message):
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(UserError, match=message):
        ActivationFeatures(model, X, **arguments)
    with pytest.raises(UserError, match="no activation"):
        ActivationFeatures(nn.Linear(8, 2), X)
