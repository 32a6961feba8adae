import copy
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.attach.attach_exits import attach_exits, trainable_parameter_groups
from tenfold.systems.boosted_exits.attach.heads import TokenHead, automatic_head

CLASSES = 5


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=CLASSES)


def _perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, CLASSES))


def _hooks(model):
    return [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]


def test_exits_leave_the_network_as_it_was(images):
    model = _resnet().eval()
    before = copy.deepcopy(model.state_dict())
    expected = model(images)
    exits = attach_exits(model, ["layer1", "layer2", "layer3"], CLASSES, example=images)
    logits = exits.eval()(images)
    assert exits.exits == 4 and [tuple(f.shape) for f in logits] == [(4, CLASSES)] * 4
    assert torch.equal(logits[-1], expected)
    assert torch.equal(exits.ensemble(logits)[1], logits[1] + 0.5 * logits[0])
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert exits.detach() is model and not _hooks(model)
    assert torch.equal(model(images), expected)


def test_attaching_keeps_each_modules_mode(images):
    model = _resnet().train()
    model.bn1.eval()
    attach_exits(model, ["layer1"], example=images)
    assert model.training and model.layer2.training and not model.bn1.training
    assert model.bn1.num_batches_tracked == 0 and model.layer1[0].bn1.num_batches_tracked == 0


def test_heads_read_the_tapped_tensors(images):
    model = _resnet().eval()
    exits = attach_exits(model, ["maxpool", "layer2"], example=images).eval()
    stem = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    assert torch.equal(exits(images)[0], exits.heads[0](stem))
    assert torch.equal(exits(images)[1], exits.heads[1](model.layer2(model.layer1(stem))))


class _Recorded(nn.Module):
    """The identity, which keeps its output to read its gradient."""

    def forward(self, x):
        self.out = x * 1.0
        if self.out.requires_grad:
            self.out.retain_grad()
        return self.out


@pytest.mark.parametrize("rescale", [True, False])
def test_gradient_rescaling_averages_what_reaches_a_block(rescale):
    blocks = nn.Sequential(*(_Recorded() for _ in range(4)))
    x = torch.randn(2, CLASSES, requires_grad=True)
    v = torch.randn(2, CLASSES)
    exits = attach_exits(
        blocks, ["0", "1", "2"], example=x, heads=[nn.Identity() for _ in range(3)], rescale=rescale
    ).train()
    logits = exits(x)
    assert all(torch.equal(f, x) for f in logits), "the forward pass is unchanged bit for bit"
    sum((f * v).sum() for f in logits).backward()
    for n, block in enumerate(blocks):
        torch.testing.assert_close(block.out.grad, v if rescale else (4 - n) * v)


def test_gradient_rescaling_only_in_training():
    blocks = nn.Sequential(_Recorded(), _Recorded())
    x = torch.randn(2, CLASSES, requires_grad=True)
    exits = attach_exits(blocks, ["0"], example=x, heads=[nn.Identity()]).eval()
    sum(f.sum() for f in exits(x)).backward()
    assert torch.equal(blocks[0].out.grad, torch.full((2, CLASSES), 2.0))


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_tap_that_a_later_layer_overwrites_is_copied(rescale, training):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, CLASSES))
    x = torch.randn(3, 4)
    exits = attach_exits(model, ["0"], example=x, rescale=rescale).train(training)
    assert exits.changed_in_place == {"0"}
    first, last = exits(x)
    hidden = model[0](x)
    assert (hidden < 0).any()
    assert torch.equal(first, exits.heads[0](hidden)) and torch.equal(last, model(x))
    (first.sum() + last.sum()).backward()
    assert model[0].weight.grad is not None


def test_dropout_in_place_is_noticed_though_it_acts_in_training_only():
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5, inplace=True), nn.Linear(64, CLASSES))
    x = torch.randn(3, 4)
    torch.manual_seed(1)
    exits = attach_exits(model, ["0"], example=x).train()
    assert exits.changed_in_place == {"0"}
    assert torch.equal(exits(x)[0], exits.heads[0](model[0](x)))


def test_a_change_in_place_that_only_training_makes_is_refused():
    class Noisy(nn.Module):
        def forward(self, x):
            return x.mul_(2) if self.training else x

    model = nn.Sequential(nn.Linear(4, 6), Noisy(), nn.Linear(6, CLASSES))
    exits = attach_exits(model, ["0"], example=torch.randn(3, 4), rescale=False).train()
    with pytest.raises(UserError, match="tap '0' in place"):
        exits(torch.randn(3, 4))


def test_heads_mode_trains_the_heads_and_nothing_else(images):
    model = _resnet()
    model.conv1.weight.requires_grad_(False)
    exits = attach_exits(model, ["layer1", "layer2"], example=images)
    groups = trainable_parameter_groups(exits, "heads", 0.1)
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0.1)
    trunk, heads = copy.deepcopy(model.state_dict()), copy.deepcopy(exits.heads.state_dict())
    exits.train()
    assert not any(module.training for module in model.modules()) and exits.heads[0].training
    for _ in range(2):
        optimizer.zero_grad()
        sum(f.square().mean() for f in exits(images)).backward()
        optimizer.step()
    assert all(torch.equal(value, trunk[name]) for name, value in model.state_dict().items())
    assert not torch.equal(exits.heads[0][0].weight, heads["0.0.weight"])
    assert exits.heads[0][1].num_batches_tracked == 2

    assert exits.detach() is model and model.training
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["conv1.weight"]


def test_joint_and_finetune_groups():
    exits = attach_exits(_perceptron(), ["1"], example=torch.randn(2, 4))
    (joint,) = trainable_parameter_groups(exits, "joint", 0.1)
    assert {id(p) for p in joint["params"]} == {id(p) for p in exits.parameters()} and joint["lr"] == 0.1
    trunk, heads = trainable_parameter_groups(exits, "finetune", 0.1)
    assert [id(p) for p in trunk["params"]] == [id(p) for p in exits.trunk.parameters()]
    assert [id(p) for p in heads["params"]] == [id(p) for p in exits.heads.parameters()]
    assert (trunk["lr"], heads["lr"]) == (pytest.approx(0.01), 0.1)
    with pytest.raises(UserError, match="'warm'"):
        trainable_parameter_groups(exits, "warm", 0.1)


class _Tagger(nn.Module):
    """Tokens to an output like transformers': an object with logits, layers that give tuples, an attention mask."""

    def __init__(self, class_token: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.layer = nn.LSTM(6, 6, batch_first=True)
        self.classifier = nn.Linear(6, CLASSES)
        if class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 6))

    def forward(self, input_ids, attention_mask=None):
        hidden, _ = self.layer(self.embedding(input_ids))
        if attention_mask is not None:
            hidden = hidden * attention_mask.unsqueeze(-1)
        return SimpleNamespace(loss=None, logits=self.classifier(hidden.sum(1)))


def test_masked_mean_ignores_padding_however_the_batch_is_given():
    torch.manual_seed(0)
    ids, mask = torch.randint(9, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    exits = attach_exits(_Tagger(), ["layer"], example={"input_ids": ids, "attention_mask": mask}).eval()
    assert exits.heads[0].pool == "mean"
    first = exits(input_ids=ids, attention_mask=mask)[0]
    for batch in ({"input_ids": ids, "attention_mask": mask}, (ids, mask)):
        assert torch.equal(exits(batch)[0], first)
    assert torch.equal(exits(ids, mask)[0], first)
    torch.testing.assert_close(exits(ids[1:2, :4])[0], first[1:2])
    assert not torch.allclose(exits(ids)[0][1], first[1])


def test_class_token_is_read_where_the_network_has_one():
    exits = attach_exits(_Tagger(class_token=True), ["embedding"], example=torch.randint(9, (3, 7)))
    assert exits.heads[0].pool == "token"
    tokens = torch.randn(2, 7, 6)
    head = exits.heads[0]
    assert torch.equal(head(tokens), head.linear(head.norm(tokens[:, 0])))


def test_automatic_heads_by_shape():
    conv = automatic_head(torch.Size([2, 8, 9, 9]), CLASSES, "mean")
    assert [type(layer).__name__ for layer in conv] == [
        "Conv2d",
        "BatchNorm2d",
        "ReLU",
        "AdaptiveAvgPool2d",
        "Flatten",
        "Linear",
    ]
    assert conv[0].stride == (2, 2) and conv[0](torch.zeros(2, 8, 9, 9)).shape == (2, 8, 5, 5)
    assert isinstance(automatic_head(torch.Size([2, 3, 8]), CLASSES, "mean"), TokenHead)
    assert isinstance(automatic_head(torch.Size([2, 8]), CLASSES, "mean"), nn.Linear)
    with pytest.raises(UserError, match=r"\(2, 8, 3, 3, 3\)"):
        automatic_head(torch.Size([2, 8, 3, 3, 3]), CLASSES, "mean")


def test_heads_from_a_function_of_the_shape_take_the_taps_data_type():
    exits = attach_exits(
        _perceptron().double(), ["1"], example=torch.randn(2, 4).double(), heads=lambda s: nn.Linear(s[1], CLASSES)
    )
    assert exits.heads[0].in_features == 6 and exits.heads[0].weight.dtype == torch.float64


def test_a_deep_copy_is_independent():
    exits = attach_exits(_perceptron(), ["1"], example=torch.randn(2, 4)).eval()
    other = copy.deepcopy(exits)
    x = torch.randn(2, 4)
    before = exits(x)
    with torch.no_grad():
        other.trunk[0].weight.zero_()
    assert torch.equal(exits(x)[0], before[0]) and not torch.equal(other(x)[0], before[0])


class _Unbatched(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(1, 4)

    def forward(self, x):
        return x + self.table(torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize(
    ("model", "taps", "options", "message"),
    [
        (_perceptron(), ["3", "1"], {}, "order of execution: 1, 3"),
        (_perceptron(), ["1", "1"], {}, "different module names"),
        (_perceptron(), [], {}, "different module names"),
        (_perceptron(), "1", {}, "different module names"),
        (_perceptron(), ["7"], {}, "has no module '7'"),
        (_perceptron(), ["1"], {"num_classes": 3}, "num_classes is 3, but the network's own output has 5"),
        (_perceptron(), ["1"], {"heads": [nn.Linear(6, 3)]}, r"tap '1' gives \(2, 3\); it must give \(2, 5\)"),
        (_perceptron(), ["1"], {"heads": []}, "got 0 for 1 taps"),
        (_perceptron(), ["1"], {"pool": "max"}, "pool is 'max'"),
        (_perceptron()[:3].append(nn.Unflatten(1, (2, 3))), ["1"], {}, r"shape \(2, 2, 3\), but exits need"),
        (nn.Sequential(nn.ModuleDict({"aside": nn.ReLU()}), nn.Linear(4, 4)), ["0.aside"], {}, None),
        (nn.Sequential(_Unbatched(), nn.Linear(4, CLASSES)), ["0.table"], {}, r"'0.table' gives \(1, 4\)"),
    ],
)
def test_wrong_use_is_one_line(model, taps, options, message):
    if message is None:  # a module that never runs
        model[0].forward = lambda x: x
        message = "'0.aside' does not run"
    with pytest.raises(UserError, match=message) as error:
        attach_exits(model, taps, example=torch.randn(2, 4), **options)
    assert "\n" not in str(error.value)


def test_output_takes_the_logits_from_any_output():
    model = nn.Sequential(_perceptron(), nn.Unflatten(1, (CLASSES, 1)))
    exits = attach_exits(model, ["0.1"], example=torch.randn(2, 4), output=lambda out: out.squeeze(-1))
    assert exits(torch.randn(3, 4))[-1].shape == (3, CLASSES)
