"""Training and filtered evaluation side by side with PyKEEN: the same model, width, batch size, data and scores.

    python benchmarks/graph_fusion_pykeen.py [--quick] [--out FILE]

Everything runs in one process with as many threads as torch takes; epochs and evaluations of the two alternate;
medians. Training: DistMult, full softmax over the answers of each distinct query, both directions, batches of 256,
Adam. Ours goes through ``tenfold.training.fit`` with its checkpoints, PyKEEN's through its LCWA loop. Evaluation: one
PyKEEN model, ranked by its evaluator and by ours; the metrics must agree to 1e-6.
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

import torch
from pykeen.evaluation import RankBasedEvaluator
from pykeen.models import DistMult as TheirDistMult
from pykeen.training import LCWATrainingLoop
from pykeen.triples import CoreTriplesFactory

from tenfold.systems.graph_fusion import DistMult, evaluate_encoder, full_scores_loss, load_graph, summarise_ranks
from tenfold.systems.graph_fusion.batches import QueryBatches
from tenfold.systems.graph_fusion.pykeen_adapter import PyKEENScorer
from tenfold.training import TrainerOptions, fit

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
NAMES = {
    "mrr": "both.realistic.inverse_harmonic_mean_rank",
    "hits@1": "both.realistic.hits_at_1",
    "hits@10": "both.realistic.hits_at_10",
    "mean_rank": "both.realistic.arithmetic_mean_rank",
}


def timed(call) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


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
    optimiser = torch.optim.AdamW(ours.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    options = TrainerOptions(loggers=[])

    def our_epochs() -> None:
        with TemporaryDirectory() as folder:
            batches = QueryBatches(known, batch, seed=0)
            fit(ours, objective, batches, epochs=epochs, optimiser=optimiser, folder=folder, options=options)

    def plain_epochs() -> None:
        batches = QueryBatches(known, batch, seed=0)
        for _ in range(epochs):
            for part in batches:
                loss, _ = objective(ours, part)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

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
            "ratio": medians["pykeen"] / medians[name],
        }
        for what, name in (("training, fit with checkpoints", "tenfold"), ("training, plain loop", "plain"))
    ]


def evaluate(graph, width: int, rounds: int) -> dict:
    """Median seconds of a filtered evaluation of one model on the test split, and the metrics' largest difference."""
    factory = CoreTriplesFactory(
        graph.train, num_entities=graph.num_entities, num_relations=graph.num_relations, create_inverse_triples=True
    )
    model = TheirDistMult(triples_factory=factory, embedding_dim=width, random_seed=0).eval()
    scorer = PyKEENScorer(model, graph.num_entities, graph.num_relations)
    found: dict = {}

    def ours() -> None:
        found["tenfold"] = summarise_ranks(evaluate_encoder(scorer, graph, "test"))

    def theirs() -> None:
        found["pykeen"] = RankBasedEvaluator(filtered=True).evaluate(
            model,
            mapped_triples=graph.test,
            additional_filter_triples=[graph.train, graph.valid],
            batch_size=512,
            use_tqdm=False,
        )

    ours(), theirs()
    pairs = [(timed(ours), timed(theirs)) for _ in range(rounds)]
    medians = {name: statistics.median(pair[n] for pair in pairs) for n, name in enumerate(("tenfold", "pykeen"))}
    difference = max(abs(found["tenfold"][name] - found["pykeen"].get_metric(key)) for name, key in NAMES.items())
    return {
        "what": "filtered evaluation",
        "queries": 2 * len(graph.test),
        **medians,
        "ratio": medians["pykeen"] / medians["tenfold"],
        "largest_difference": difference,
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "graph-fusion-pykeen.json"))
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else 5
    graphs = [("UMLS", load_graph("umls"), 10)]
    if os.environ.get("TENFOLD_DATA"):
        graphs.append(("FB15K-237-10, 3,000 entities", load_graph("FB15K-237-10", entities=3000), 1))
    rows = []
    for name, graph, epochs in graphs:
        for measured in (*train(graph, 64, 256, epochs, rounds), evaluate(graph, 64, rounds)):
            rows.append({"graph": name, "entities": graph.num_entities, **measured})
            print(rows[-1], flush=True)
    results = {
        "environment": {"pykeen": version("pykeen"), "torch": torch.__version__, "threads": torch.get_num_threads()},
        "rows": rows,
    }
    Path(arguments.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
