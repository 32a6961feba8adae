"""Training and filtered evaluation side by side with PyKEEN: the same model, width, batch size, data and scores.

    python benchmarks/graph_fusion_pykeen.py [--quick] [--out FILE]

Everything runs in one process on one thread, timed in processor seconds; epochs and evaluations of the two alternate;
medians. Training: DistMult, full softmax over the answers of each distinct query, both directions, batches of 256,
Adam. Ours goes through ``tenfold.training.fit`` with its checkpoints, and through a plain loop over the same batches;
PyKEEN's through its LCWA loop, which writes no checkpoints. Evaluation: one DistMult, in each library's implementation
with the same weights; and one table of scores read by both, which leaves the evaluators alone. PyKEEN evaluates with
the batch size that suits it best of those tried first.
"""

import argparse
import json
import logging
import os
import statistics
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from pykeen.evaluation import RankBasedEvaluator
from pykeen.models import DistMult as TheirDistMult
from pykeen.models.mocks import FixedModel
from pykeen.training import LCWATrainingLoop
from pykeen.triples import CoreTriplesFactory

from tenfold.systems.graph_fusion import (
    DistMult,
    QueryScorer,
    evaluate_encoder,
    full_scores_loss,
    load_graph,
    summarise_ranks,
    with_inverses,
)
from tenfold.systems.graph_fusion.fusion.batches import QueryBatches
from tenfold.training import fit
from tenfold.training.options import TrainerOptions

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
BATCH_SIZES = (4, 8, 16, 32, 64, 128, 256, 512)
"""Of PyKEEN's evaluation: the best one is compared with."""
NAMES = {
    "mrr": "both.realistic.inverse_harmonic_mean_rank",
    "hits@1": "both.realistic.hits_at_1",
    "hits@10": "both.realistic.hits_at_10",
    "mean_rank": "both.realistic.arithmetic_mean_rank",
}


def timed(call) -> float:
    """Processor seconds of a call: what it takes on a core that is free."""
    start = time.process_time()
    call()
    return time.process_time() - start


def objective(model, batch):
    """One softmax per query, over its answers, as PyKEEN's LCWA loop with cross-entropy."""
    return full_scores_loss(model.score_all(batch.heads, batch.relations), batch, smoothing=0.0), {}


def train(graph, width: int, batch: int, epochs: int, rounds: int) -> list[dict]:
    """Median seconds of an epoch through fit, in a plain loop, and of PyKEEN's, turns alternating."""
    factory = CoreTriplesFactory(
        graph.train, num_entities=graph.num_entities, num_relations=graph.num_relations, create_inverse_triples=True
    )
    theirs = TheirDistMult(triples_factory=factory, embedding_dim=width, loss="crossentropy", random_seed=0)
    loop = LCWATrainingLoop(model=theirs, triples_factory=factory, optimizer=torch.optim.Adam(theirs.parameters()))
    ours = DistMult(graph.num_entities, graph.num_relations, width)
    known = graph.known("train")
    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    options = TrainerOptions(loggers=[])

    def our_epochs() -> None:
        with TemporaryDirectory() as folder:
            batches = QueryBatches(known, batch, seed=0)
            fit(ours, objective, batches, epochs=epochs, optimizer=optimizer, folder=folder, options=options)

    def plain_epochs() -> None:
        batches = QueryBatches(known, batch, seed=0)
        for _ in range(epochs):
            for part in batches:
                loss, _ = objective(ours, part)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def their_epochs() -> None:
        loop.train(factory, num_epochs=epochs, batch_size=batch, use_tqdm=False, only_size_probing=False)

    seconds: dict[str, list[float]] = {"tenfold": [], "plain": [], "pykeen": []}
    our_epochs(), plain_epochs(), their_epochs()  # the first turn warms up
    for _ in range(rounds):
        seconds["tenfold"].append(timed(our_epochs) / epochs)
        seconds["plain"].append(timed(plain_epochs) / epochs)
        seconds["pykeen"].append(timed(their_epochs) / epochs)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        {
            "what": what,
            "queries": len(known),
            "tenfold": medians[name],
            "pykeen": medians["pykeen"],
            "ratio": statistics.median(b / a for a, b in zip(seconds[name], seconds["pykeen"], strict=True)),
        }
        for what, name in (("training, fit with checkpoints", "tenfold"), ("training, plain loop", "plain"))
    ]


class TableModel(FixedModel):
    """Scores read from rows of a table, as a PyKEEN model: all that is left to time is the evaluator."""

    def __init__(self, factory, table, row) -> None:
        super().__init__(triples_factory=factory)
        self.table, self.row, self.plain = table, row, factory.num_relations

    def score_t(self, hr_batch, **_):
        """Rows of (h, r, ?)."""
        return self.table[self.row[hr_batch[:, 0], hr_batch[:, 1]]]

    def score_h(self, rt_batch, **_):
        """Rows of (?, r, t)."""
        return self.table[self.row[rt_batch[:, 1], rt_batch[:, 0] + self.plain]]


class TableScorer(QueryScorer):
    """The same table as an encoder."""

    def __init__(self, table, row, num_relations) -> None:
        super().__init__(table.shape[1], num_relations)
        self.table, self.row = table, row

    def encode(self):
        """Nothing is shared between queries."""
        return ()

    def score_all(self, heads, relations):
        """Rows of the queries."""
        return self.table[self.row[heads, relations]]


def evaluate(graph, width: int, rounds: int) -> list[dict]:
    """Median seconds of filtered evaluations of the test split, and how far metrics and ranks are apart."""
    factory = CoreTriplesFactory(graph.train, num_entities=graph.num_entities, num_relations=graph.num_relations)
    theirs = TheirDistMult(triples_factory=factory, embedding_dim=width, random_seed=0).eval()
    ours = DistMult(graph.num_entities, graph.num_relations, width, inverse="algebraic").eval()
    with torch.no_grad():
        ours.entity_embedding.copy_(theirs.entity_representations[0](None))
        ours.relation_embedding.copy_(theirs.relation_representations[0](None))
        queries = with_inverses(graph.test, graph.num_relations)[:, :2].unique(dim=0)
        row = torch.full((graph.num_entities, 2 * graph.num_relations), -1)
        row[queries[:, 0], queries[:, 1]] = torch.arange(len(queries))
        table = torch.cat([ours.score_all(part[:, 0], part[:, 1]) for part in queries.split(512)])
    pairs = {
        "filtered evaluation, the same weights in each library's model": (ours, theirs),
        "filtered evaluation, scores read from one table": (
            TableScorer(table, row, graph.num_relations),
            TableModel(factory, table, row).eval(),
        ),
    }
    return [{"what": what, **compare_evaluators(graph, *pair, rounds)} for what, pair in pairs.items()]


def compare_evaluators(graph, scorer, model, rounds: int) -> dict:
    """Both evaluators on the test split, turns alternating.

    Rates are compared as they are, mean ranks relative to their size: PyKEEN keeps ranks in single precision. The
    ranks themselves are compared one by one.
    """
    found: dict = {}

    def ours() -> None:
        found["ranks"] = evaluate_encoder(scorer, graph, "test")
        found["tenfold"] = summarise_ranks(found["ranks"])

    def theirs(batch_size: int) -> None:
        evaluator = RankBasedEvaluator(filtered=True, clear_on_finalize=False)
        found["pykeen"] = evaluator.evaluate(
            model,
            mapped_triples=graph.test,
            additional_filter_triples=[graph.train, graph.valid],
            batch_size=batch_size,
            use_tqdm=False,
        )
        found["their_ranks"] = [np.concatenate(evaluator.ranks[end, "realistic"]) for end in ("tail", "head")]

    ours(), theirs(32)  # the first turn warms up
    tried = {size: timed(lambda: theirs(size)) for size in BATCH_SIZES}  # noqa: B023
    best = min(tried, key=lambda size: tried[size])
    pairs = [(timed(ours), timed(lambda: theirs(best))) for _ in range(rounds)]
    medians = {name: statistics.median(pair[n] for pair in pairs) for n, name in enumerate(("tenfold", "pykeen"))}
    values = [(found["tenfold"][name], found["pykeen"].get_metric(key)) for name, key in NAMES.items()]
    return {
        "queries": 2 * len(graph.test),
        **medians,
        "ratio": statistics.median(b / a for a, b in pairs),
        "pykeen_batch_size": best,
        "largest_difference": max(abs(a - b) / max(1.0, abs(b)) for a, b in values),
        "different_ranks": int((found["ranks"].realistic().numpy() != np.concatenate(found["their_ranks"])).sum()),
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "graph-fusion-pykeen.json"))
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else 5
    torch.set_num_threads(1)
    graphs = [("UMLS", load_graph("umls"), 10)]
    if os.environ.get("TENFOLD_DATA"):
        graphs.append(("FB15K-237-10, 3,000 entities", load_graph("FB15K-237-10", entities=3000), 1))
    rows: list[dict] = []
    for name, graph, epochs in graphs:
        for measured in (*train(graph, 64, 256, epochs, rounds), *evaluate(graph, 64, rounds)):
            rows.append({"graph": name, "entities": graph.num_entities, **measured})
            print(rows[-1], flush=True)
    results = {
        "environment": {"pykeen": version("pykeen"), "torch": torch.__version__, "threads": torch.get_num_threads()},
        "rows": rows,
    }
    Path(arguments.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
