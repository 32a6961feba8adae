import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tenfold.cost import count_flops, count_parameters, measure_latency, measure_peak_memory
from tenfold.errors import TenfoldWarning


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


def test_parameters_counts_shared_ones_once_and_frozen_ones_on_demand() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4, bias=False))
    network[1].weight = network[0].weight
    network[0].bias.requires_grad_(False)
    assert count_parameters(network) == 16
    assert count_parameters(network, trainable_only=True) == 12


@pytest.mark.parametrize("batch", [1, 3])
def test_flops_of_a_small_network_by_hand(batch: int) -> None:
    x = torch.zeros(batch, 4, 8, 8)
    convolution = 6 * 4 * 4 * (4 // 2) * 3 * 3
    relu, max_pool, average = 6 * 4 * 4, 6 * 2 * 2 * 2 * 2, 6 * 2 * 2
    network = small_network()
    assert count_flops(network, x, convention="msdnet") == batch * (convolution + relu + max_pool + average + 6 * 5 + 5)
    assert count_flops(network, x, convention="multiply-adds") == batch * (convolution + 6 * 5)
    assert count_flops(network, x, convention="torch") == batch * 2 * (convolution + 6 * 5)


@pytest.mark.parametrize("convention", ["msdnet", "torch", "multiply-adds"])
def test_counting_leaves_no_trace(convention: str) -> None:
    network = small_network().train()
    network[1].eval()
    flags = [module.training for module in network.modules()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    x = torch.rand(2, 4, 8, 8)
    random_state = torch.get_rng_state()

    def run() -> None:
        torch.rand(1)
        network(x)

    first = count_flops(run, modules=[network, network], convention=convention)
    assert count_flops(run, modules=[network], convention=convention) == first > 0

    with pytest.raises(RuntimeError, match="on purpose"):
        count_flops(fail_on_purpose, modules=[network], convention=convention)
    assert [module.training for module in network.modules()] == flags
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def fail_on_purpose() -> None:
    raise RuntimeError("on purpose")


def test_counts_what_the_callable_runs_and_no_more() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    first = count_flops(lambda: network[0](torch.zeros(1, 3)), modules=[network], convention="msdnet")
    twice = count_flops(lambda x: network[0](network[0](x)[:, :3]), torch.zeros(1, 3), modules=[network])
    assert (first, twice) == (16, 2 * 2 * 12)


def test_attention_is_counted_although_eval_mode_fuses_it() -> None:
    tokens, dim, hidden = 7, 16, 32
    layer = nn.TransformerEncoderLayer(dim, 2, hidden, batch_first=True)
    expected = tokens * (4 * dim * dim + 2 * dim * hidden) + 2 * tokens * tokens * dim
    assert count_flops(layer, torch.zeros(1, tokens, dim), convention="multiply-adds") == expected


STEPS, ROWS, IN, OUT = 5, 2, 6, 4
RECURRENT = {
    "lstm": (lambda: nn.LSTM(16, 24, batch_first=True), (1, 12, 16), 46_080),
    "lstm, both directions, two layers": (
        lambda: nn.LSTM(IN, OUT, num_layers=2, bidirectional=True),
        (STEPS, ROWS, IN),
        STEPS * ROWS * 2 * 4 * OUT * ((IN + OUT) + (2 * OUT + OUT)),
    ),
    "lstm with projection": (
        lambda: nn.LSTM(IN, OUT, proj_size=3),
        (STEPS, ROWS, IN),
        STEPS * ROWS * (4 * OUT * (IN + 3) + 3 * OUT),
    ),
    "gru": (lambda: nn.GRU(IN, OUT), (STEPS, ROWS, IN), STEPS * ROWS * 3 * OUT * (IN + OUT)),
    "rnn": (lambda: nn.RNN(IN, OUT), (STEPS, ROWS, IN), STEPS * ROWS * OUT * (IN + OUT)),
}


@pytest.mark.parametrize(("make", "shape", "expected"), RECURRENT.values(), ids=RECURRENT)
def test_recurrent_layers_are_counted_whatever_kernel_runs_them(make, shape, expected) -> None:
    assert count_flops(make(), torch.randn(shape), convention="multiply-adds") == expected


PRODUCTS = {
    "matrix by vector": (lambda m, v: m @ v, 4 * 5),
    "vector by vector": (lambda m, v: torch.dot(v, v), 5),
    "added": (lambda m, v: torch.addmv(torch.zeros(4), m, v), 4 * 5),
    "distances": (lambda m, v: torch.cdist(m, m), 4 * 4 * 5),
    "bilinear": (lambda m, v: F.bilinear(m, m, torch.ones(3, 5, 5)), 4 * 3 * 5 * 5 + 4 * 3 * 5),
    "einsum": (lambda m, v: torch.einsum("ij,kj->ik", m, m), 4 * 4 * 5),
    "pointwise": (lambda m, v: (m * v).relu().softmax(-1).mean(), 0),
}


@pytest.mark.parametrize(("call", "expected"), PRODUCTS.values(), ids=PRODUCTS)
def test_products_are_counted(call, expected) -> None:
    counted = count_flops(call, torch.ones(4, 5), torch.ones(5), modules=[], convention="multiply-adds")
    assert counted == expected


@torch.library.custom_op("stranger::product", mutates_args=())
def strange_product(x: torch.Tensor) -> torch.Tensor:
    return x @ x


@pytest.mark.parametrize("call", [torch.linalg.inv, torch.fft.fft, strange_product])
def test_what_has_no_formula_is_not_taken_for_nothing_in_silence(call) -> None:
    with pytest.warns(TenfoldWarning, match="counted as nothing"):
        count_flops(call, torch.eye(3), modules=[])


def test_flops_misuse() -> None:
    with pytest.raises(ValueError, match="convention must be one of"):
        count_flops(nn.Linear(1, 1), torch.zeros(1, 1), convention="macs")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="modules must name"):
        count_flops(lambda: None)
    with pytest.raises(ValueError, match="no rule for ConvTranspose2d"):
        count_flops(nn.ConvTranspose2d(1, 1, 3), torch.zeros(1, 1, 4, 4), convention="msdnet")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.sampled_from(["msdnet", "torch", "multiply-adds"]))
def test_a_batch_costs_as_much_as_its_inputs(batch: int, height: int, width: int, convention: str) -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * height * width, 2))
    one, many = (count_flops(network, torch.zeros(b, 2, height, width), convention=convention) for b in (1, batch))
    assert many == batch * one > 0


def test_latency_pins_threads_and_restores_them() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def call() -> None:
        seen.append(torch.get_num_threads())
        time.sleep(0.002)

    latency = measure_latency(call, threads=before + 1, warmup=2, repeats=5)
    assert seen == [before + 1] * 7
    assert torch.get_num_threads() == before
    assert (latency.repeats, latency.threads) == (5, before + 1)
    assert 2 <= latency.lower_quartile_ms <= latency.median_ms <= latency.upper_quartile_ms

    with pytest.raises(RuntimeError, match="on purpose"):
        measure_latency(fail_on_purpose, threads=before + 1)
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="repeats"):
        measure_latency(call, repeats=1)


def test_peak_memory_follows_what_is_alive() -> None:
    x = torch.zeros(1000)
    weight = nn.Linear(1000, 10)

    def chain() -> None:
        y = x + 1  # 4000 bytes
        z = y.view(10, 100) * 2  # 8000 bytes: the view costs nothing
        del y
        z.add_(1)
        z.sum(0)  # z and 400 bytes

    assert measure_peak_memory(chain) == 8000
    assert measure_peak_memory(chain) == 8000
    assert measure_peak_memory(lambda: x.add_(1)) == 0
    assert measure_peak_memory(lambda: weight(x)) == 40

    def layers(depth: int) -> None:
        y = x.requires_grad_()
        for _ in range(depth):
            y = y.sigmoid()  # keeps its output for the gradient

    assert measure_peak_memory(lambda: layers(6)) == 6 * 4000
    with torch.no_grad():
        assert measure_peak_memory(lambda: layers(6)) == 2 * 4000
