from collections import OrderedDict

import pytest
import torch
from torch import nn

from tenfold.errors import UserError
from tenfold.models.taps import collect_taps, find_module, first_tensor, tap_hooks


class _Branching(nn.Module):
    def __init__(self, repeats: int = 1) -> None:
        super().__init__()
        self.late = nn.Linear(4, 4)
        self.early = nn.Linear(4, 4)
        self.memory = nn.LSTM(4, 4, batch_first=True)
        self.unused = nn.Linear(4, 4)
        self.repeats = repeats

    def forward(self, x):
        for _ in range(self.repeats):
            x = self.early(x)
        x = self.late(x)
        return self.memory(x)[0]


@pytest.fixture
def x():
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def test_outputs_come_in_order_of_execution_and_no_hook_remains(x):
    model = _Branching()
    expected_early = model.early(x)
    with collect_taps(model, ["memory", "late", "unused", "early"]) as outputs:
        result = model(x)
    assert list(outputs) == ["early", "late", "memory"]
    assert torch.equal(outputs["early"], expected_early)
    assert torch.equal(outputs["memory"], result), "the LSTM's tuple stands for its first tensor"
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_when_the_forward_fails():
    model = _Branching()
    with pytest.raises(RuntimeError), collect_taps(model, ["early"]):
        model(torch.ones(2, 3, 5))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("path", ["late", "memory"])
def test_a_returned_tensor_replaces_the_output(x, path):
    model = _Branching()
    with tap_hooks(model, [path], lambda _, tensor: torch.zeros_like(tensor)):
        result = model(x)
    expected = torch.zeros_like(x) if path == "memory" else model.memory(torch.zeros_like(x))[0]
    assert torch.equal(result, expected)


def test_a_module_that_runs_twice_is_refused(x):
    model = _Branching(repeats=2)
    with pytest.raises(UserError, match="'early' runs more than once"), collect_taps(model, ["early"]):
        model(x)
    assert not model.early._forward_hooks


def test_an_output_without_a_tensor_is_refused(x):
    class Shape(nn.Module):
        def forward(self, x):
            return x.shape

    model = nn.Sequential(Shape())
    with pytest.raises(UserError, match="'0' gives Size"), collect_taps(model, ["0"]):
        model(x)


@pytest.mark.parametrize("path", ["encoder.layer.O", "layer", ""])
def test_a_missing_module_is_named_in_one_line(path):
    model = nn.Sequential(OrderedDict(encoder=nn.Sequential(OrderedDict(layer=nn.Sequential(nn.ReLU())))))
    with pytest.raises(UserError) as error:
        find_module(model, path)
    message = str(error.value)
    assert f"has no module {path!r}" in message and "named_modules" in message and "\n" not in message
    if path:
        assert "'encoder.layer" in message


def test_find_module_knows_shared_modules_by_each_name():
    shared = nn.Linear(1, 1)
    model = nn.ModuleDict({"a": shared, "b": shared})
    assert find_module(model, "b") is shared


def test_first_tensor_looks_into_nested_outputs():
    tensor = torch.ones(1)
    assert first_tensor({"loss": None, "out": ([tensor], torch.zeros(1))}) is tensor
    assert first_tensor((None, 3)) is None


def test_one_run_of_a_module_that_runs_several_times_is_named_by_its_number(x):
    model = _Branching(repeats=3)
    with collect_taps(model, ["early#0", "early#2"]) as outputs:
        model(x)
    assert list(outputs) == ["early#0", "early#2"]
    once = model.early(x)
    assert torch.equal(outputs["early#0"], once)
    assert torch.equal(outputs["early#2"], model.early(model.early(once)))
