"""Serving: every mode gives every input the same exit and logits."""

import threading

import pytest
import torch
from torch import nn

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.attach.attach_exits import attach_exits
from tenfold.systems.boosted_exits.attach.cut import cut
from tenfold.systems.boosted_exits.attach.cut_model import HookStopper
from tenfold.systems.boosted_exits.method import confidence
from tenfold.systems.boosted_exits.networks.msdnet import MSDNet
from tenfold.systems.boosted_exits.networks.ranet import RANet
from tenfold.systems.boosted_exits.networks.small_cnn import small_cnn
from tenfold.systems.boosted_exits.serving.regrouping import RegroupingServer, StageQueues
from tenfold.systems.boosted_exits.serving.runner import EarlyExitRunner, simulate

SMALL_MSDNET = {"num_blocks": 3, "base": 1, "step": 1, "channels": 8, "growth_rate": 4, "growth_factors": (1, 2)}
SMALL_RANET = {"channels": 8, "growth_rate": 4, "growth_factors": (2, 1), "scales": (1, 2), "step": 2}


def make(name):
    torch.manual_seed(0)
    if name == "tensor state":
        model, shape = small_cnn(num_classes=5, widths=(4, 6, 8, 8)), (1, 12, 12)
    elif name == "list state":
        model, shape = MSDNet(5, bottleneck_factors=(1, 2), **SMALL_MSDNET), (3, 16, 16)
    elif name == "nested state":
        model, shape = RANet(5, bottleneck_factors=(2, 1), **SMALL_RANET), (3, 16, 16)
    else:
        trunk = nn.Sequential(
            *[nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(3)],
            nn.Flatten(),
            nn.Linear(192, 5),
        )
        shape = (3, 8, 8)
        exits = attach_exits(trunk.eval(), ["0", "1"], example=torch.zeros(2, *shape))
        model = cut(exits, torch.zeros(2, *shape))
    model.eval()
    inputs = torch.randn(23, *shape) * 3
    with torch.no_grad():
        sure = [confidence(z) for z in model.ensemble(model(inputs))]
    # Half of the inputs at every exit, between two confidences so that no input ties.
    thresholds = [(c.sort().values[11] + c.sort().values[12]).item() / 2 for c in sure[:-1]]
    return model, inputs, [*thresholds, -1e8]


MODELS = ("tensor state", "list state", "nested state", "cut")


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    model, inputs, thresholds = make(request.param)
    expected = simulate(model, inputs, thresholds)
    assert len(expected.exits.unique()) >= 3
    return model, inputs, thresholds, expected


def check(outputs, expected):
    assert outputs.exits.tolist() == expected.exits.tolist()
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"min_keep": 0.0}, {"min_keep": 0.6}, {"min_keep": 1.0}, {"buckets": (1, 2, 4, 8, 16, 32)}], ids=str
)
def test_compaction_gives_the_simulated_answers(case, options):
    model, inputs, thresholds, expected = case
    outputs = EarlyExitRunner(model, thresholds, **options)(inputs)
    check(outputs, expected)
    staying = [int((expected.exits >= n).sum()) for n in range(model.exits)]
    assert all(size >= needed for size, needed in zip(outputs.stage_sizes, staying, strict=True))
    if options.get("min_keep") == 0.0:
        assert list(outputs.stage_sizes) == staying
    if "buckets" in options:
        assert set(outputs.stage_sizes) <= {0, *options["buckets"]}


def test_one_at_a_time_gives_the_same_answers(case):
    model, inputs, thresholds, expected = case
    runner = EarlyExitRunner(model, thresholds)
    for row in range(len(inputs)):
        one = runner(inputs[row : row + 1])
        assert one.exits.item() == expected.exits[row]
        torch.testing.assert_close(one.logits[0], expected.logits[row], rtol=0, atol=1e-5)
        assert sum(size > 0 for size in one.stage_sizes) == expected.exits[row] + 1  # it really stopped


def test_answers_do_not_depend_on_the_rest_of_the_batch(case):
    model, inputs, thresholds, expected = case
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    shuffled = EarlyExitRunner(model, thresholds)(inputs[order])
    assert shuffled.exits.tolist() == expected.exits[order].tolist()
    easy = inputs[expected.exits == 0][:1].expand(9, *inputs.shape[1:])
    padded = EarlyExitRunner(model, thresholds)(torch.cat([inputs, easy]))
    torch.testing.assert_close(padded.logits[: len(inputs)], expected.logits, rtol=0, atol=1e-5)


def test_everybody_leaves_at_once_or_nobody_before_the_end(case):
    model, inputs, _, _ = case
    first = EarlyExitRunner(model, [-1e8] * model.exits)(inputs)
    assert first.exits.eq(0).all()
    assert first.stage_sizes[1:] == (0,) * (model.exits - 1)
    last = EarlyExitRunner(model, [1e8] * model.exits)(inputs)
    assert last.exits.eq(model.exits - 1).all()
    torch.testing.assert_close(last.logits, model.ensemble(model(inputs))[-1])


def test_nan_inputs_go_to_the_last_exit_and_harm_nobody():
    model, inputs, thresholds = make("tensor state")
    expected = simulate(model, inputs, thresholds)
    spoilt = inputs.clone()
    spoilt[3] = float("nan")
    outputs = EarlyExitRunner(model, thresholds)(spoilt)
    assert outputs.exits[3] == model.exits - 1
    others = torch.arange(len(inputs)) != 3
    assert outputs.exits[others].tolist() == expected.exits[others].tolist()


def test_empty_batch():
    model, inputs, thresholds = make("tensor state")
    outputs = EarlyExitRunner(model, thresholds)(inputs[:0])
    assert outputs.logits.shape == (0, 5)
    assert outputs.exits.shape == (0,)


@pytest.mark.parametrize("thresholds", [[0.5, float("nan"), 0.5, 0.5], [0.5]])
def test_thresholds_that_are_no_numbers_or_too_few_are_refused(thresholds):
    model, inputs, _ = make("tensor state")
    with pytest.raises(UserError, match="thresholds"):
        EarlyExitRunner(model, thresholds)
    with pytest.raises(UserError, match="thresholds"):
        simulate(model, inputs, thresholds)


def test_training_mode_is_refused():
    model, inputs, thresholds = make("tensor state")
    with pytest.raises(ValueError, match="eval"):
        EarlyExitRunner(model.train(), thresholds)(inputs)


@pytest.mark.parametrize("options", [{"min_keep": 1.5}, {"buckets": (4, 2)}, {"buckets": ()}])
def test_options_out_of_range_are_refused(options):
    model, _, thresholds = make("tensor state")
    with pytest.raises(ValueError, match=next(iter(options))):
        EarlyExitRunner(model, thresholds, **options)


class _Branches(nn.Module):
    """Control flow that depends on the data, which no graph can hold."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        x = self.first(x).tanh()
        x = self.second(x) if x.sum().item() > 0 else self.second(-x)
        return self.third(x)


def test_networks_that_cannot_be_cut_are_served_one_by_one():
    torch.manual_seed(0)
    exits = attach_exits(_Branches().eval(), ["first", "second"], example=torch.randn(2, 6))
    model = cut(exits, torch.randn(2, 6))
    assert isinstance(model, HookStopper)
    model.eval()
    inputs = torch.randn(9, 6)
    alone = [simulate(model, inputs[i : i + 1], [0.3, 0.25, -1e8]) for i in range(9)]
    outputs = EarlyExitRunner(model, [0.3, 0.25, -1e8])(inputs)
    assert outputs.exits.tolist() == [answer.exits.item() for answer in alone]
    torch.testing.assert_close(outputs.logits, torch.cat([answer.logits for answer in alone]))


def test_regrouped_requests_get_their_own_answers(case):
    model, inputs, thresholds, expected = case
    now = [0.0]
    queues = StageQueues(model, thresholds, batch_size=8, deadline_ms=10, clock=lambda: now[0])
    sizes = [1, 3, 2, 5, 1, 11]
    futures = [queues.submit(part) for part in inputs.split(sizes)]
    while queues.run_next():
        pass
    assert 0 < queues.waiting() < 8 * model.exits  # too few to fill a batch, not yet due
    now[0] += 0.011
    while queues.run_next():
        now[0] += 0.011
    assert queues.waiting() == 0
    answers = [future.result(timeout=0) for future in futures]
    assert torch.cat([answer.exits for answer in answers]).tolist() == expected.exits.tolist()
    torch.testing.assert_close(torch.cat([a.logits for a in answers]), expected.logits, rtol=0, atol=1e-5)


def test_server_answers_many_threads_and_finishes_its_queue_when_closed():
    model, inputs, thresholds = make("tensor state")
    expected = simulate(model, inputs, thresholds)
    answers = {}
    with RegroupingServer(model, thresholds, batch_size=6, deadline_ms=10_000) as server:

        def ask(row):
            answers[row] = server.submit(inputs[row : row + 1])

        threads = [threading.Thread(target=ask, args=(row,)) for row in range(len(inputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [answers[row].result(timeout=0).exits.item() for row in range(len(inputs))] == expected.exits.tolist()
    with pytest.raises(RuntimeError, match="closed"):
        server.submit(inputs)


def test_an_error_reaches_the_one_who_asked():
    model, inputs, thresholds = make("tensor state")
    with RegroupingServer(model, thresholds, batch_size=4, deadline_ms=1) as server:
        wrong = server.submit(torch.zeros(1, 2, 3, 3))
        with pytest.raises(RuntimeError):
            wrong.result(timeout=30)
        assert server.submit(inputs[:4]).result(timeout=30).exits.shape == (4,)
