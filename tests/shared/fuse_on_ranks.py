"""A small fusion, on as many processes as asked: a script for several, a function for one."""

import json
import sys

import torch
from graph_for_tests import small_graph

from tenfold.systems.graph_fusion import Fusion, Learning, build_encoder, evaluate_encoder
from tenfold.systems.graph_fusion.experiment.from_settings import schedule_of
from tenfold.systems.graph_fusion.experiment.settings import FusionOptions
from tenfold.training.options import TrainerOptions
from tenfold.training.parallel import rank


def fuse(folder, devices):
    """History, injected triples and ranks; without dropout, whose masks every process draws for itself."""
    torch.manual_seed(0)
    graph = small_graph(unseen=1)
    dropout = {"dropout": 0.0, "hidden_dropout": 0.0}
    made = Fusion(
        graph,
        build_encoder("compgcn", graph, {"dim": 16, "decoder": "distmult", **dropout}),
        build_encoder("hash-text", graph, {"dim": 8, "dropout": 0.0}),
        schedule=schedule_of(
            FusionOptions(
                batch_size=16,
                warm_epochs=2,
                mutual_epochs=1,
                rounds=1,
                phase_epochs=1,
                threshold=0.0,
                top_k=8,
                mutual_split="exact",
                leftover=True,
            )
        ),
        learning={"structure": Learning(loss="1vsall"), "text": Learning()},
        folder=folder,
        trainer=TrainerOptions(accelerator="cpu", devices=devices, loggers=[]),
    )
    made.warm_start()
    made.run()
    made.use_best()
    return {
        "history": made.history,
        "injected": [found.injected.triples.tolist() for found in made.rounds],
        "ranks": evaluate_encoder(made.pair.text, graph).realistic().tolist(),
    }


if __name__ == "__main__":
    found = fuse(sys.argv[1], int(sys.argv[2]))
    if rank() == 0:
        print(json.dumps(found))
