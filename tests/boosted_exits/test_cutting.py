import pytest
import timm
import torch
import torchvision
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.attach.attach_exits import attach_exits
from tenfold.systems.boosted_exits.attach.cut import cut
from tenfold.systems.boosted_exits.attach.cut_model import HookStopper

CLASSES = 5


def _images(batch=6):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))


def _text(batch=6):
    generator = torch.Generator().manual_seed(batch)
    mask = (torch.arange(9) < torch.randint(3, 10, (batch, 1), generator=generator)).long()
    return {"input_ids": torch.randint(50, (batch, 9), generator=generator), "attention_mask": mask}


def _tokens(batch=6):
    return torch.randn(batch, 6, 8, generator=torch.Generator().manual_seed(batch))


def _resnet():
    return torchvision.models.resnet18(num_classes=CLASSES)


def _bert():
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=64,
            vocab_size=50,
            max_position_embeddings=32,
            num_labels=CLASSES,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


class _Live(nn.Module):
    """All that may cross a cut: a position table, the batch size, numbers made of it, shapes, constants, a tuple."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 6, 8))
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x):
        batch, tokens = x.shape[0], x.shape[1]
        doubled = 2 * batch
        shape = x.shape
        table = self.positions.sin()
        halves = x.chunk(2, dim=1)
        x = self.first(x + table)
        x = self.second(x.reshape(batch * tokens, 8).reshape(shape) + table)
        x = x.reshape(doubled, 3, 8).reshape(batch, tokens, 8)
        return self.last(x.mean(1) + halves[1].sum(1))


class _Stepwise(nn.Module):
    """Goes on in a way that depends on the numbers themselves: no graph holds it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.last = nn.Linear(8, CLASSES)
        self.calls = []

    def forward(self, x):
        x = self.first(x.mean(1))
        if x.sum() > 0:
            x = -x
        self.calls.append("second")
        x = self.second(x)
        self.calls.append("last")
        return self.last(x)


CASES = {
    "resnet18": (_resnet, ["layer1", "layer2", "layer3"], _images, "fx"),
    "resnet18 by export": (_resnet, ["layer1", "layer2", "layer3"], _images, "export"),
    "resnet18 inside blocks": (_resnet, ["bn1", "layer2.0.bn1", "layer3.1"], _images, "fx"),
    "torchvision vit": (
        lambda: torchvision.models.VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=CLASSES),
        ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"],
        _images,
        "fx",
    ),
    "timm vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4, num_classes=CLASSES),
        ["blocks.1", "blocks.2"],
        _images,
        "fx",
    ),
    "timm efficientnet": (
        lambda: timm.create_model("efficientnet_lite0", num_classes=CLASSES),
        ["blocks.1", "blocks.4"],
        _images,
        "fx",
    ),
    "bert": (_bert, ["bert.encoder.layer.0", "bert.encoder.layer.1"], _text, "export"),
    "all that may cross": (_Live, ["first", "second"], _tokens, "fx"),
    "all that may cross by export": (_Live, ["first", "second"], _tokens, "export"),
    "inside nn.TransformerEncoder": (
        lambda: nn.Sequential(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
            nn.Flatten(),
            nn.Linear(48, CLASSES),
        ),
        ["0.layers.0"],
        _tokens,
        "export",
    ),
}


def _cut(case, **options):
    make, taps, batch, method = CASES[case]
    torch.manual_seed(0)
    exits = attach_exits(make(), taps, example=batch(), **options)
    methods = ("export",) if "by export" in case else ("fx", "export")
    return exits, cut(exits, batch(), methods=methods), batch, method


@pytest.mark.parametrize("case", CASES)
def test_stages_are_the_network(case):
    exits, model, batch, method = _cut(case)
    assert model.cut_report.method == method
    assert model.cut_report.difference <= 1e-6 and model.cut_report.compaction_difference <= 1e-5
    with torch.no_grad():
        for size in (1, 3, 7):  # none of them the example's
            for f, expected in zip(model(batch(size)), exits(batch(size)), strict=True):
                torch.testing.assert_close(f, expected, atol=1e-6, rtol=1e-6)
    owners = [id(p) for stage in model.stages for p in stage.parameters()]
    assert sorted(owners) == sorted({id(p) for p in exits.trunk.parameters()}), "each parameter in one stage, shared"


@pytest.mark.parametrize("case", CASES)
def test_samples_may_leave_after_any_stage(case):
    exits, model, batch, _ = _cut(case)
    with torch.no_grad():
        expected = exits(batch(6))
        state, rows = batch(6), torch.arange(6)
        for n, staying in enumerate([torch.tensor([4, 1, 2]), torch.tensor([2, 0]), torch.tensor([1])][: model.exits]):
            state, f = model.run_stage(n, state)
            torch.testing.assert_close(f, expected[n][rows], atol=1e-5, rtol=1e-5)
            if n + 1 < model.exits:
                assert len(state) == len(model.batched[n])
                state = tuple(
                    entry[staying] if has_rows else entry
                    for entry, has_rows in zip(state, model.batched[n], strict=True)
                )
                rows = rows[staying]


def test_what_crosses_a_cut_is_told_apart():
    _, model, batch, _ = _cut("all that may cross")
    state, _ = model.run_stage(0, batch(4))
    shared = [entry for entry, has_rows in zip(state, model.batched[0], strict=True) if not has_rows]
    assert any(torch.is_tensor(entry) and entry.shape == (1, 6, 8) for entry in shared), "the position table, as it is"
    numbers = [entry for entry in state if not torch.is_tensor(entry)]
    assert numbers == [6], "the number of tokens crosses; the batch size and its double do not"


def test_padding_reaches_the_heads_of_a_cut_network():
    exits, model, _, _ = _cut("bert")
    batch = _text(4)
    other = {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}
    with torch.no_grad():
        assert torch.equal(model(batch)[0], exits(batch)[0])
        assert not torch.allclose(model(other)[0], model(batch)[0])


@pytest.mark.parametrize("case", ["resnet18", "resnet18 inside blocks", "all that may cross", "bert"])
def test_training_stages_gives_the_gradients_of_the_uncut_network(case):
    exits, model, batch, _ = _cut(case)
    gradients = []
    for network in (exits, model):
        network.train()
        exits.zero_grad()
        sum(f.square().sum() for f in network(batch())).backward()
        gradients.append([p.grad.clone() for p in exits.parameters()])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_fx_stages_follow_train_and_eval():
    exits, model, batch, _ = _cut("resnet18")
    before = exits.trunk.layer2[0].bn1.running_mean.clone()
    model.train()(batch())
    assert not torch.equal(exits.trunk.layer2[0].bn1.running_mean, before)
    after = exits.trunk.layer2[0].bn1.running_mean.clone()
    model.eval()(batch())
    assert torch.equal(exits.trunk.layer2[0].bn1.running_mean, after)


def test_tracing_leaves_nothing_on_the_trunk():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.last = nn.Linear(8, CLASSES)

        def forward(self, x):
            return self.last(self.first(x.mean(1)) * torch.tensor(2.0))

    exits = attach_exits(Constant(), ["first"], example=_tokens())
    before = set(vars(exits.trunk))
    assert cut(exits, _tokens()).cut_report.method == "fx"
    assert set(vars(exits.trunk)) == before
    assert not any(module._forward_hooks for module in exits.trunk.modules())


def test_nested_sequentials_that_cannot_be_traced_are_cut_between_children():
    torch.manual_seed(0)
    trunk = nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8)),
        nn.ReLU(inplace=True),
        nn.Sequential(_PerSample(), nn.Linear(8, 8)),
        nn.Linear(8, CLASSES),
    )
    exits = attach_exits(trunk, ["0", "2.0"], example=_tokens())
    model = cut(exits, _tokens())
    assert model.cut_report.method == "sequential" and set(model.cut_report.failures) == {"fx", "export"}
    assert exits.changed_in_place == {"0"} and model.batched == [(True,)] * 3
    with torch.no_grad():
        x = _tokens(7)
        assert all(torch.equal(f, expected) for f, expected in zip(model(x), exits(x), strict=True))
        state, _ = model.run_stage(0, x)
        torch.testing.assert_close(model.run_stage(1, state[[5, 2]])[1], exits(x)[1][[5, 2]])
    owners = [id(p) for stage in model.stages for p in stage.parameters()]
    assert sorted(owners) == sorted(id(p) for p in trunk.parameters())


class _PerSample(nn.Module):
    def forward(self, x):
        return torch.stack([-row if row.sum() > 0 else row for row in x])


def test_control_flow_falls_back_to_stopping_by_hooks():
    torch.manual_seed(0)
    exits = attach_exits(_Stepwise(), ["first", "second"], example=_tokens()).eval()
    model = cut(exits, _tokens())
    assert isinstance(model, HookStopper) and model.cut_report.method == "hooks"
    assert set(model.cut_report.failures) == {"fx", "export", "sequential"}
    x = _tokens(1)
    with torch.no_grad():
        expected = exits(x)
        assert all(torch.equal(f, g) for f, g in zip(model(x), expected, strict=True))
        for last, ran in enumerate([[], ["second"], ["second", "last"]]):
            exits.trunk.calls.clear()
            asked = []

            def leaves(n, z, last=last, asked=asked):
                asked.append(z)
                return n == last

            logits = model.run_until(x, leaves)
            assert exits.trunk.calls == ran, "nothing runs behind the exit"
            assert len(logits) == last + 1
            assert all(torch.equal(f, g) for f, g in zip(logits, expected, strict=False))
            assert all(torch.equal(z, g) for z, g in zip(asked, exits.ensemble(expected), strict=False))
    assert not any(module._forward_hooks for module in exits.trunk.modules())
    with pytest.raises(UserError, match="batch of 2"):
        model(_tokens(2))
    with pytest.raises(UserError, match="batch of 2"):
        model.run_until(_tokens(2), lambda n, z: False)


class _BatchMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = x.mean(1)
        centre = x.mean(0)
        return self.last(self.first(x) - centre)


class _LateBatchMean(_BatchMean):
    """Couples the samples behind the cut: nothing suspicious crosses, only the numbers tell."""

    def forward(self, x):
        x = self.first(x.mean(1))
        return self.last(x - x.mean(0))


class _TokensFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x):
        memory = x.transpose(0, 1).tanh()
        return self.last(self.first(x.mean(1)) + memory.mean(0))


class _Positions(nn.Module):
    """Numbers the rows of a batch: a batched tensor that is not about the samples."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x):
        rows = torch.arange(x.shape[0], device=x.device)
        return self.last(self.first(x.mean(1))[rows])


@pytest.mark.parametrize("make", [_BatchMean, _LateBatchMean, _TokensFirst, _Positions])
def test_a_cut_that_could_not_lose_rows_is_refused(make):
    exits = attach_exits(make(), ["first"], example=_tokens())
    with pytest.raises(UserError, match="cannot be cut at first") as error:
        cut(exits, _tokens(), methods=("fx", "export", "sequential"))
    message = str(error.value)
    assert "\n" not in message
    assert all(f"{method}: " in message for method in ("fx", "export", "sequential"))


class _TakesOneDict(nn.Module):
    """A network whose ``forward`` takes the batch whole, as many training loops have it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, batch):
        x = self.first(batch["a"]).relu() + batch["b"]
        return {"logits": self.head(self.second(x).relu())}["logits"]


@pytest.mark.parametrize("method", ["fx", "export", "hooks"])
def test_a_network_that_takes_one_dict_gets_it_whole(method):
    torch.manual_seed(0)
    batch = {"a": torch.randn(5, 4), "b": torch.randn(5, 6)}
    network = _TakesOneDict()
    exits = attach_exits(network, ["first"], example=batch).eval()
    torch.testing.assert_close(exits(batch)[-1], network(batch))
    stages = cut(exits, batch, methods=[method])
    one = {name: value[:1] for name, value in batch.items()}
    torch.testing.assert_close(torch.stack(stages(one)), torch.stack(exits(one)))
    with pytest.raises(UserError, match=r"_Pair.forward takes .*holds x"):
        attach_exits(_Pair(), ["layer"], example={"x": torch.zeros(2, 4)})


class _Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, left, right):
        return self.layer(left + right)


def test_unknown_methods_are_refused():
    exits = attach_exits(_Live(), ["first"], example=_tokens())
    with pytest.raises(UserError, match="onnx"):
        cut(exits, _tokens(), methods=("onnx",))
