"""The schedule: what is frozen stays, controls are what they say, killed fusions resume."""

import shutil

import numpy as np
import pytest
import torch
from graph_for_tests import not_a_number, plain, small_graph, wrong_shape

from tenfold.errors import UserError
from tenfold.systems.graph_fusion import (
    Fusion,
    Learning,
    Schedule,
    build_encoder,
    densify,
    fit_ensemble,
    fit_temperature,
    fuse_encoders,
    sample_unobserved,
    with_inverses,
)
from tenfold.systems.graph_fusion.experiment.from_settings import schedule_of
from tenfold.systems.graph_fusion.experiment.settings import FusionOptions
from tenfold.systems.graph_fusion.fusion.batches import QueryBatches
from tenfold.systems.graph_fusion.fusion.densification import candidates_of, precision_curve
from tenfold.systems.graph_fusion.fusion.objectives import SIDES, Exchange, MutualObjective, Pair, PhaseObjective
from tenfold.systems.graph_fusion.fusion.teachers import read_teacher, write_teacher
from tenfold.systems.graph_fusion.graph.unobserved_queries import plausible_weights
from tenfold.systems.graph_fusion.ranking.calibration import ConfidenceCurve
from tenfold.training.options import TrainerOptions

GRAPH = small_graph()
OPTIONS = {
    "batch_size": 16,
    "warm_epochs": 2,
    "mutual_epochs": 2,
    "patience": 2,
    "rounds": 2,
    "phase_epochs": 2,
    "threshold": 0.0,
    "top_k": 8,
}
QUIET = TrainerOptions(loggers=[])


def fusion(folder, graph=GRAPH, structure="conve", seed=0, **changes):
    torch.manual_seed(seed)
    arguments = {"conve": {"dim": 16, "channels": 4}, "compgcn": {"dim": 16, "decoder": "distmult"}}.get(structure, {})
    return Fusion(
        graph,
        build_encoder(structure, graph, arguments),
        build_encoder("hash-text", graph, {"dim": 16}),
        schedule=schedule_of(FusionOptions(**{**OPTIONS, **changes})),
        seed=seed,
        folder=folder,
        trainer=QUIET,
    )


def weights(pair):
    return {name: value.clone() for name, value in pair.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def whole(made):
    made.warm_start()
    made.run()
    return made


@pytest.fixture(scope="module")
def unbroken_fusions(tmp_path_factory):
    """Whole fusions that several tests compare with; none may change them."""
    return {name: whole(fusion(tmp_path_factory.mktemp(name), structure=name)) for name in ("conve", "compgcn")}


def after_warm_start(unbroken_fusions, folder, **changes):
    """A fusion that finds the warm start done."""
    shutil.copytree(unbroken_fusions["conve"].folder / "warm", folder / "warm")
    return fusion(folder, **changes)


def test_one_seed_gives_one_result(tmp_path, unbroken_fusions):
    first, second = unbroken_fusions["conve"], whole(fusion(tmp_path / "b"))
    assert same(weights(first.pair), weights(second.pair))
    assert first.history == second.history
    assert first.rounds[1].injected.triples.tolist() == second.rounds[1].injected.triples.tolist()


def test_without_any_exchange_the_encoders_learn_alone(tmp_path, unbroken_fusions):
    """mu = nu = lam = 0 gives the weights of training alone, bit for bit."""
    off = {"lam": 0.0, "mu_e": 0.0, "mu_m": 0.0, "nu": 0.0, "share": 0.0}
    together = whole(fusion(tmp_path / "off", **off))
    # The same with other unobserved queries, teachers and partner: nothing of them may reach the learner.
    other = fusion(tmp_path / "other", cross=1, residual=False, calibrate=False, **off)
    assert same(weights(together.pair), weights(whole(other).pair))
    assert not same(weights(together.pair), weights(unbroken_fusions["conve"].pair))


def test_stop_gradients_keep_a_shared_backward_apart():
    torch.manual_seed(0)
    pair = Pair(build_encoder("distmult", GRAPH, {"dim": 8}), build_encoder("hash-text", GRAPH, {"dim": 8}))
    batch = next(iter(QueryBatches(GRAPH.known("train"), 8, seed=0)))
    scores = {side: pair.side(side).score_all(batch.heads, batch.relations) for side in SIDES}
    exchange = Exchange(1.0, 1.0, "full", {"structure": 1.0, "text": 1.0})
    exchange.mutual("text", scores["text"], scores["structure"], batch).backward()
    assert all(p.grad is None for p in pair.structure.parameters())
    assert any(p.grad is not None for p in pair.text.parameters())


def test_the_frozen_encoder_stays_and_is_asked_in_eval_mode():
    torch.manual_seed(0)
    pair = Pair(
        build_encoder("conve", GRAPH, {"dim": 16, "channels": 4}), build_encoder("hash-text", GRAPH, {"dim": 8})
    )
    before = weights(pair.structure)
    pair.train()
    batch = next(iter(QueryBatches(GRAPH.known("train"), 8, seed=0)))
    objective = PhaseObjective("text", Learning(), Exchange(1.0, 1.0, "full", {"structure": 1.0, "text": 1.0}), 0.0)
    objective(pair, batch)[0].backward()
    objective.forget(pair)
    assert not pair.structure.training  # dropout off, batch statistics untouched
    assert same(before, weights(pair.structure))
    assert all(p.grad is None for p in pair.structure.parameters())


def test_best_weights_are_the_best_on_validation_over_all_stages(tmp_path, unbroken_fusions):
    made = fusion(tmp_path)
    made.load_state(unbroken_fusions["conve"].state())
    for side in SIDES:
        values = [row[f"validation/{side}"] for row in made.history if f"validation/{side}" in row]
        assert made.best[side].mrr == max(values)
        made.use_best()
        assert made._validation_mrr(side) == pytest.approx(made.best[side].mrr, abs=1e-12)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("where", "structure"),
    [("mutual-1", "conve"), ("round-1/e-step", "conve"), ("between", "conve"), ("round-2/m-step", "compgcn")],
)
def test_a_killed_fusion_resumes_to_the_same_numbers(tmp_path, unbroken_fusions, where, structure):
    """In any phase, EM included: models, optimizer, queries, teacher files, best weights (9.4)."""
    unbroken = unbroken_fusions[structure]

    def kill(epoch, epochs, note):
        name = note.split(":")[0]
        if (name, epoch) == (where, 2) or (where == "between" and name == "round-1/e-step" and epoch == epochs):
            raise Killed

    # What came before the kill is read from the unbroken fusion's folder, as a resumed one would read it.
    before = {"mutual-1": ["warm"], "round-2/m-step": ["warm", "mutual-1", "round-1"]}.get(where, ["warm", "mutual-1"])
    for phase in before:
        shutil.copytree(unbroken.folder / phase, tmp_path / "broken" / phase)
    broken = fusion(tmp_path / "broken", structure=structure)
    broken.on_progress = kill
    with pytest.raises(Killed):
        whole(broken)
    resumed = whole(fusion(tmp_path / "broken", structure=structure))
    assert same(weights(unbroken.pair), weights(resumed.pair))
    assert unbroken.history == resumed.history
    for side in SIDES:
        assert unbroken.best[side].mrr == resumed.best[side].mrr
        assert same(unbroken.best[side].state, resumed.best[side].state)
    assert [r.true_share for r in unbroken.rounds] == [r.true_share for r in resumed.rounds]


def test_what_is_done_counts_for_the_same_fusion_only(tmp_path, unbroken_fusions):
    shutil.copy(unbroken_fusions["conve"].folder / "made-from.json", tmp_path)
    fusion(tmp_path)
    for changes in ({"seed": 1}, {"rounds": 3}, {"structure": "distmult"}, {"graph": small_graph(seed=1)}):
        with pytest.raises(UserError, match="holds a fusion with another"):
            fusion(tmp_path, **changes)


def test_damaged_phases_are_named(tmp_path, unbroken_fusions):
    made = after_warm_start(unbroken_fusions, tmp_path)
    (tmp_path / "warm" / "done.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"warm/done.pt is damaged.*remove the folder"):
        made.warm_start()


def test_changed_teacher_files_are_noticed(tmp_path, unbroken_fusions):
    folder = shutil.copytree(unbroken_fusions["conve"].folder / "round-1" / "posterior", tmp_path / "posterior")
    read_teacher(folder)
    path = folder / "ids.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"ids.npy is missing or was changed"):
        read_teacher(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"e_step": "reverse"},
        {"roles": "structure-posterior"},
        {"order": "model"},
        {"mutual_split": "exact"},
        {"mutual_split": "decoupled", "temperature": 2.0},
        {"gate": "validated", "agreement": 3},
        {"sample": True, "leftover": True, "renormalize": True},
        {"max_queries": 20, "calibrate": False, "weighted": False},
    ],
)
def test_every_option_trains(tmp_path, unbroken_fusions, changes):
    made = whole(after_warm_start(unbroken_fusions, tmp_path, mutual_epochs=1, rounds=1, phase_epochs=1, **changes))
    assert all(np.isfinite(row["train/loss"]) for row in made.history)


@pytest.mark.parametrize("loss", ["1vsall", "bce", "nssa", "infonce", "sampled"])
def test_every_encoder_keeps_its_own_loss(tmp_path, loss):
    made = fusion(tmp_path, warm_epochs=1, mutual_epochs=1, rounds=1, phase_epochs=1)
    made.learning = {"structure": Learning(loss="bce"), "text": Learning(loss=loss, negatives=8)}
    whole(made)
    assert made.history[-1]["train/supervised"] > 0


def test_unobserved_queries_come_from_the_training_split_alone():
    known = GRAPH.known("train")
    found = sample_unobserved(GRAPH, known, seed=0, cross=2)
    assert torch.equal(found.queries[~found.cross], known.queries)
    cross = found.queries[found.cross]
    assert bool((known.find(cross) < 0).all())  # a relation that the entity does not have
    assert len(cross.unique(dim=0)) == len(cross)  # without replacement
    again = sample_unobserved(GRAPH, known, seed=0, cross=2)
    assert torch.equal(again.queries, found.queries)
    assert not torch.equal(sample_unobserved(GRAPH, known, seed=1, cross=2).queries, found.queries)
    state = torch.get_rng_state()
    sample_unobserved(GRAPH, known, seed=0)
    assert torch.equal(state, torch.get_rng_state())


def test_plausible_relations_by_hand():
    """w(h, r) = sum over relations a of h of cooc(a, r) / cooc(a, a)."""
    from tenfold.systems.graph_fusion import AnswerIndex

    # Entity 0 has relations 0 and 1, entity 1 has 0, entity 2 has 1 and 2.
    known = AnswerIndex(torch.tensor([[0, 0, 5], [0, 1, 5], [1, 0, 5], [2, 1, 5], [2, 2, 5]]), 2)
    found = plausible_weights(known, torch.tensor([0, 1, 2]))
    expected = torch.tensor([[0, 0, 1 / 2, 0], [0, 1 / 2, 0, 0], [1 / 2, 0, 0, 0]])
    torch.testing.assert_close(found, expected)


def teacher_file(tmp_path, **options):
    torch.manual_seed(0)
    known = GRAPH.known("train")
    queries = sample_unobserved(GRAPH, known, seed=0)
    encoder = build_encoder("hash-text", GRAPH, {"dim": 8})
    return encoder, queries, known, write_teacher(encoder, queries, known, tmp_path / "teacher", **options)


def test_teacher_files_hold_the_distribution_without_known_answers(tmp_path):
    encoder, queries, known, file = teacher_file(tmp_path, k=5)
    encoder.eval()
    scores = encoder.score_all(queries.queries[:, 0], queries.queries[:, 1]).detach()
    owner, answers, _ = known.of(known.find(queries.queries))
    scores[owner, answers] = -torch.inf
    expected = scores.softmax(1).topk(5, 1)
    assert np.array_equal(file.ids, expected.indices.numpy())
    assert np.allclose(file.probabilities, expected.values.numpy(), atol=1e-3)
    assert np.allclose(file.tail, 1 - expected.values.sum(1).numpy(), atol=1e-3)
    assert isinstance(file.ids, np.memmap)


def test_a_structure_teacher_does_not_judge_what_it_never_saw(tmp_path):
    """Queries of unseen entities get weight 0, unseen candidates no probability (9.4)."""
    graph = small_graph(unseen=2)
    known, seen = graph.known("train"), graph.seen()
    queries = sample_unobserved(graph, known, seed=0, extra=torch.tensor([[24, 0]]))
    encoder = build_encoder("distmult", graph, {"dim": 8})
    file = write_teacher(encoder, queries, known, tmp_path, k=22, seen=seen)
    assert file.weights[-1] == 0 and (file.weights[:-1] == 1).all()
    unseen = np.isin(file.ids, [24, 25])
    assert file.probabilities[unseen].max(initial=0) == 0


def test_fusion_leaves_what_only_text_knows(tmp_path):
    """The text encoder's ranks of unseen entities do not fall because structure knows nothing of them."""
    from tenfold.systems.graph_fusion import evaluate_encoder, summarise_groups

    graph = small_graph(unseen=4)
    made = fusion(tmp_path, graph=graph, warm_epochs=15, rounds=1)
    made.warm_start()
    made.use_best()
    before = summarise_groups(evaluate_encoder(made.pair.text, graph), graph)["unseen"]["mrr"]
    made.run()
    made.use_best()
    after = summarise_groups(evaluate_encoder(made.pair.text, graph), graph)["unseen"]["mrr"]
    assert after >= before - 0.05


def test_densification_by_hand(tmp_path):
    _, _, known, file = teacher_file(tmp_path)
    everything = candidates_of(file, GRAPH)
    assert bool((everything.triples[:, 1] < GRAPH.num_relations).all())
    assert len(everything.triples.unique(dim=0)) == len(everything)  # a triple and its inverse count once
    assert not bool(known.contains(everything.triples).any())  # known facts are masked
    assert (everything.confidence.diff() <= 0).all()
    middle = float(everything.confidence.median())
    found = densify(file, GRAPH, threshold=middle, share=1.0)
    assert bool((found.confidence >= middle).all()) and len(found) < len(everything)
    assert len(densify(file, GRAPH, threshold=0.0, share=0.1)) == round(0.1 * len(GRAPH.train))
    assert len(densify(file, GRAPH, threshold=0.0, share=0.0)) == 0
    index = found.as_answers(GRAPH.num_relations, 0.5)
    assert bool(index.contains(with_inverses(found.triples, GRAPH.num_relations)).all())
    assert index.weights.max() <= 0.5
    agreeing = densify(file, GRAPH, threshold=0.0, share=10.0, student=file, agreement=1)
    assert len(agreeing) == len(everything)  # a teacher agrees with itself


def test_held_out_facts_do_not_decide_what_is_injected(tmp_path):
    """Neither validation nor test triples enter the acceptance rule; they may be predicted (9.2)."""
    from dataclasses import replace

    _, _, _, file = teacher_file(tmp_path)
    other = replace(GRAPH, valid=GRAPH.test, test=GRAPH.valid)
    assert (
        Schedule().injection.gate == "threshold"
    )  # the other gate looks at validation facts, and says so on all results
    first, second = (densify(file, graph, threshold=0.0) for graph in (GRAPH, other))
    assert torch.equal(first.triples, second.triples)


def test_precision_is_judged_by_all_that_is_known(tmp_path):
    from dataclasses import replace

    _, _, _, file = teacher_file(tmp_path)
    found = candidates_of(file, GRAPH)
    graph = replace(GRAPH, hidden=found.triples[::2].clone())
    curve = precision_curve(found, graph, torch.tensor([0.0, 2.0]))
    assert curve["count"] == [len(found), 0] and curve["precision"][1] is None
    assert curve["precision"][0] >= 0.5 > curve["precision_known"][0]


def test_temperatures_undo_a_scale():
    torch.manual_seed(0)
    encoder = build_encoder("transe", GRAPH, {"dim": 8})
    first = fit_temperature(encoder, GRAPH)

    class Louder(type(encoder)):
        def score_all(self, heads, relations):
            return 7 * super().score_all(heads, relations)

    encoder.__class__ = Louder
    assert fit_temperature(encoder, GRAPH) == pytest.approx(7 * first, rel=3e-2)


def test_confidence_curves_are_monotone():
    confidence = torch.linspace(0, 1, 200)
    hits = torch.rand(200, generator=torch.Generator().manual_seed(0)) < confidence**2
    curve = ConfidenceCurve(confidence, hits)(confidence)
    assert (curve.diff() >= 0).all() and curve.min() >= 0 and curve.max() <= 1


def test_an_ensemble_of_one_encoder_is_that_encoder():
    torch.manual_seed(0)
    encoder = build_encoder("distmult", GRAPH, {"dim": 8})
    ensemble = fit_ensemble(encoder, encoder, GRAPH)
    heads, relations = torch.arange(5), torch.arange(5)
    order = ensemble.score_all(heads, relations).argsort(1)
    assert torch.equal(order, encoder.score_all(heads, relations).argsort(1))


def test_fuse_encoders_serves_a_users_own(tmp_path):
    torch.manual_seed(0)
    schedule = schedule_of(FusionOptions(**{**OPTIONS, "rounds": 1}))
    result = fuse_encoders(
        plain(GRAPH),
        build_encoder("hash-text", GRAPH, {"dim": 8}),
        GRAPH,
        folder=tmp_path,
        schedule=schedule,
        trainer=QUIET,
    )
    answers = result.student("structure").predict("e003", "r1", k=3)
    assert len(answers) == 3 and answers[0].rank == 1
    assert set(result.validation) == {"structure", "text"} and len(result.rounds) == 1


@pytest.mark.parametrize(("make", "message"), [(wrong_shape, "must score all 24"), (not_a_number, "not finite")])
def test_encoders_that_break_the_contract_are_refused_before_training(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        fuse_encoders(make(GRAPH), build_encoder("hash-text", GRAPH, {"dim": 8}), GRAPH, folder=tmp_path / "run")


def test_agreement_is_logged(tmp_path):
    made = fusion(tmp_path)
    made.warm_start()
    made.mutual()
    assert all(0 <= row["train/agreement"] <= 1 for row in made.history if row["stage"].startswith("mutual"))
    assert isinstance(
        MutualObjective(made.learning, made._exchange(1.0, {"structure": 1.0, "text": 1.0})), MutualObjective
    )
    shutil.rmtree(tmp_path)
