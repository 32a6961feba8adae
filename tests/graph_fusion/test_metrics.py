"""Ranks: known answers, ties, filters, PyKEEN's numbers."""

from dataclasses import replace

import pytest
import torch
from graph_for_tests import Plain, small_graph

from tenfold.errors import UserError
from tenfold.systems.graph_fusion import (
    AnswerIndex,
    Ranks,
    build_encoder,
    evaluate_encoder,
    paired_bootstrap,
    rank_queries,
    summarise_groups,
    summarise_ranks,
    with_inverses,
)
from tenfold.systems.graph_fusion.encoders.query_scorer import FrozenScores
from tenfold.systems.graph_fusion.ranking.ranks import agreement


def table(rows, relations=1):
    """Scores of query (0, 0), (1, 0), ... in rows; all other queries score 0."""
    n = len(rows[0])
    scores = torch.zeros(n, 2 * relations, n)
    for head, row in enumerate(rows):
        scores[head, 0] = torch.tensor(row, dtype=torch.float32)
    return FrozenScores(scores)


def test_a_graph_ranked_by_hand():
    """Five entities, six triples: the answer's rank among those that are not known."""
    triples = torch.tensor([[0, 0, 1], [0, 0, 2], [0, 0, 4], [1, 0, 3], [2, 0, 0], [3, 0, 3]])
    scorer = table([[5, 4, 3, 2, 1], [1, 2, 3, 4, 5], [0, 9, 9, 9, 9], [1, 1, 1, 1, 0]])
    known = AnswerIndex(triples, 1)
    ranks = rank_queries(scorer, triples, known)
    # (0, 0, 1): only 0 is better. (0, 0, 2): 0; 1 is known. (0, 0, 4): 0 and 3.
    # (1, 0, 3): 4. (2, 0, 0): all. (3, 0, 3): ties.
    assert ranks.better.tolist() == [1, 1, 2, 1, 4, 0]
    assert ranks.ties.tolist() == [0, 0, 0, 0, 0, 3]
    assert ranks.realistic().tolist() == [2, 2, 3, 2, 5, 2.5]
    assert ranks.candidates.tolist() == [3, 3, 3, 5, 5, 5]
    unfiltered = rank_queries(scorer, triples, None)
    assert unfiltered.better.tolist() == [1, 2, 4, 1, 4, 0]


@pytest.mark.parametrize("name", ["distmult", "hash-text"])
def test_entities_that_share_a_vector_tie_at_every_batch_size(name):
    """A product of matrices may round two equal columns differently: ties must not depend on its shape."""
    graph = small_graph(entities=300)
    torch.manual_seed(0)
    if name == "distmult":
        scorer = build_encoder(name, graph, {"dim": 33})
        with torch.no_grad():
            scorer.entity_embedding[100:200] = scorer.entity_embedding[7]
    else:
        names = tuple(f"thing {n % 40}" for n in range(300))
        scorer = build_encoder(name, replace(graph, names=names), {"dim": 33})
    found = [evaluate_encoder(scorer, graph, "train", batch_size=size) for size in (1, 7, 64, 1000)]
    for other in found[1:]:
        assert torch.equal(other.ties, found[0].ties)
    assert int(found[0].ties.max()) >= (99 if name == "distmult" else 7) - 4  # but for known answers


def test_a_constant_scorer_gets_the_ranks_of_a_guess():
    n = 7
    scorer = FrozenScores(torch.zeros(n, 2, n))
    ranks = rank_queries(scorer, torch.tensor([[0, 0, 3]]), None)
    assert (ranks.optimistic().item(), ranks.realistic().item(), ranks.pessimistic().item()) == (1, (n + 1) / 2, n)


def test_ties_are_pykeens():
    """Rows [1, 1, 1, 1] with target 0 and [3, 2, 2, 1] with target 1."""
    ranks = rank_queries(table([[1, 1, 1, 1], [3, 2, 2, 1]]), torch.tensor([[0, 0, 0], [1, 0, 1]]), None)
    found = summarise_ranks(ranks)
    assert found["mrr_optimistic"] == pytest.approx(0.75)
    assert found["mrr"] == pytest.approx(0.40)
    assert found["mrr_pessimistic"] == pytest.approx(0.2917, abs=1e-4)
    assert found["mean_rank"] == pytest.approx(2.5)


def test_batches_do_not_change_a_rank():
    graph = small_graph()
    torch.manual_seed(0)
    scorer = Plain(graph)
    whole = evaluate_encoder(scorer, graph, "test", batch_size=1000)
    small = evaluate_encoder(scorer, graph, "test", batch_size=3)
    assert torch.equal(whole.better, small.better) and torch.equal(whole.ties, small.ties)


def test_both_directions_in_the_order_of_the_split():
    graph = small_graph()
    ranks = evaluate_encoder(Plain(graph), graph, "test")
    n = len(graph.test)
    assert torch.equal(ranks.triples[:n], graph.test)
    assert torch.equal(ranks.triples[n:], with_inverses(graph.test, graph.num_relations)[n:])
    assert ranks.by_triple().shape == (n,)
    assert ranks.predicts_head.tolist() == [False] * n + [True] * n


def test_agreement_is_that_of_first_answers_that_are_new():
    graph = small_graph()
    torch.manual_seed(0)
    scorer, other = Plain(graph), Plain(graph)
    assert agreement(scorer, scorer, graph) == 1.0
    queries = with_inverses(graph.valid, graph.num_relations)[:, :2].unique(dim=0)
    owner, answers, _ = graph.known("train").of(graph.known("train").find(queries))
    first, second = (made.score_all(queries[:, 0], queries[:, 1]).detach() for made in (scorer, other))
    for scores in (first, second):
        scores[owner, answers] = -torch.inf
    share = (first.argmax(1) == second.argmax(1)).double().mean().item()
    assert agreement(scorer, other, graph) == pytest.approx(share)


def test_half_precision_scores_are_ranked_in_single_precision():
    class Half(FrozenScores):
        def score_all(self, heads, relations):
            return super().score_all(heads, relations).half()

    scores = torch.arange(5.0).expand(5, 2, 5).clone()
    assert rank_queries(Half(scores), torch.tensor([[0, 0, 3]]), None).better.tolist() == [1]


def test_unseen_entities_are_kept_and_reported_apart():
    graph = small_graph(unseen=3)
    groups = summarise_groups(evaluate_encoder(Plain(graph), graph, "test"), graph)
    assert groups["unseen"]["queries"] == 6 and groups["seen"]["queries"] == 16
    assert groups["degree 0"]["queries"] == 3  # the given entity of three queries is unseen
    assert groups["both"]["queries"] == 22


@pytest.mark.parametrize(("change", "message"), [(float("nan"), "not finite"), (float("inf"), "not finite")])
def test_scores_that_are_no_numbers_are_refused(change, message):
    scores = torch.zeros(4, 2, 4)
    scores[1, 0, 2] = change
    with pytest.raises(UserError, match=message):
        rank_queries(FrozenScores(scores), torch.tensor([[1, 0, 0]]), None)


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="empty"):
        rank_queries(FrozenScores(torch.zeros(4, 2, 4)), torch.empty(0, 3, dtype=torch.int64), None)


def test_the_bootstrap_finds_a_difference_and_its_absence():
    generator = torch.Generator().manual_seed(0)
    base = {seed: torch.rand(300, generator=generator) for seed in range(3)}
    better = {seed: value + 0.1 + 0.02 * torch.randn(300, generator=generator) for seed, value in base.items()}
    found = paired_bootstrap(better, base)
    assert found.low > 0.09 and found.high < 0.11
    same = paired_bootstrap({s: v + 0.1 * torch.randn(300, generator=generator) for s, v in base.items()}, base)
    assert same.low < 0 < same.high
    with pytest.raises(ValueError):
        paired_bootstrap(base, {0: base[0]})


def test_the_same_metrics_as_pykeen():
    """Its evaluator on the same scores, filtered, both directions (issue: to 1e-6)."""
    pytest.importorskip("pykeen")
    from pykeen.evaluation import RankBasedEvaluator
    from pykeen.models import DistMult

    from tenfold.systems.graph_fusion.encoders.pykeen_scorer import PyKEENScorer, import_pykeen

    graph = small_graph()
    factory, _ = import_pykeen()
    train = factory(graph.train, num_entities=graph.num_entities, num_relations=graph.num_relations)
    model = DistMult(triples_factory=train, embedding_dim=6, random_seed=0)
    with torch.no_grad():  # coarse scores, so that there are ties
        for parameter in model.parameters():
            parameter.copy_((parameter * 2).round())
    theirs = RankBasedEvaluator(filtered=True).evaluate(
        model,
        mapped_triples=graph.test,
        additional_filter_triples=[graph.train, graph.valid],
        use_tqdm=False,
        batch_size=4,
    )
    scorer = PyKEENScorer(model, graph.num_entities, graph.num_relations)
    ranks = evaluate_encoder(scorer, graph, "test")
    assert int(ranks.ties.sum()) > 0
    ours = summarise_ranks(ranks)
    for name, key in (
        ("mrr", "both.realistic.inverse_harmonic_mean_rank"),
        ("mrr_optimistic", "both.optimistic.inverse_harmonic_mean_rank"),
        ("mrr_pessimistic", "both.pessimistic.inverse_harmonic_mean_rank"),
        ("hits@1", "both.realistic.hits_at_1"),
        ("hits@10", "both.realistic.hits_at_10"),
        ("mean_rank", "both.realistic.arithmetic_mean_rank"),
    ):
        assert ours[name] == pytest.approx(theirs.get_metric(key), abs=1e-6), name


def test_ranks_of_one_query_with_many_answers():
    triples = torch.tensor([[0, 0, t] for t in range(4)])
    ranks = rank_queries(table([[1, 2, 3, 4, 5]]), triples, AnswerIndex(triples, 1))
    assert isinstance(ranks, Ranks) and ranks.better.tolist() == [1, 1, 1, 1]
