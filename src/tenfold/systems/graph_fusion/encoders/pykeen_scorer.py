"""Any PyKEEN model as an encoder.

PyKEEN numbers directed relations 2r and 2r + 1, here they are r and r + R; its ``mapped_triples`` hold plain r. Models
without inverse relations answer head queries by ``score_h``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold.errors import UserError, require
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer


class PyKEENScorer(QueryScorer):
    """A PyKEEN model that scores all entities.

    Args:
        model: an instance of ``pykeen.models.Model``.
        num_entities: N; must be the model's.
        num_relations: R, inverses not counted; must be the model's.
        order: ``(N,)`` the model's number of each of our entities; PyKEEN sorts labels, so does
            `load_graph`: ``None`` where both came from the same labels.

    Raises:
        UserError: the numbers differ.
    """

    def __init__(self, model: Any, num_entities: int, num_relations: int, order: Sequence[int] | None = None) -> None:
        super().__init__(num_entities, num_relations)
        real = int(getattr(model, "num_real_relations", model.num_relations))
        if model.num_entities != num_entities or real != num_relations:
            raise UserError(
                f"the PyKEEN model has {model.num_entities:,} entities and {real} relations, the graph "
                f"{num_entities:,} and {num_relations}: train it on all entities of the graph (PyKEEN drops those "
                "unseen in training)"
            )
        self.model = model
        self.inverse = bool(getattr(model, "use_inverse_triples", False))
        chosen = torch.arange(num_entities) if order is None else torch.as_tensor(order)
        self.register_buffer("order", chosen, persistent=False)

    def encode(self) -> Any:
        """Nothing is shared between queries that PyKEEN would take."""
        return ()

    def score_all(self, heads: Tensor, relations: Tensor) -> Tensor:
        """See `QueryScorer`; raw scores, no sigmoid."""
        order: Tensor = self.order  # type: ignore[assignment]
        known, backward = order[heads], relations >= self.num_relations
        plain = relations % self.num_relations
        if self.inverse:
            internal = 2 * plain + backward.long()
            return self.model.score_t(torch.stack([known, internal], 1))[:, order]
        scores = torch.empty(len(heads), self.num_entities, device=heads.device, dtype=torch.float32)
        if bool((~backward).any()):
            batch = torch.stack([known[~backward], plain[~backward]], 1)
            scores[~backward] = self.model.score_t(batch).to(scores.dtype)
        if bool(backward.any()):
            batch = torch.stack([plain[backward], known[backward]], 1)
            scores[backward] = self.model.score_h(batch).to(scores.dtype)
        return scores[:, order]


def make_pykeen_model(name: str, train: Tensor, num_entities: int, num_relations: int, **arguments: Any) -> Any:
    """A PyKEEN model by name, on all entities of a graph, with inverse relations where it can have them.

    Args:
        name: of the class, such as ``"RotatE"``.
        train: ``(n, 3)`` training triples.
        num_entities: N.
        num_relations: R.
        **arguments: of the class, such as ``embedding_dim``.

    Raises:
        UserError: PyKEEN is not installed or cannot be imported, or has no such model.
    """
    factory_class, models = import_pykeen()
    found = {cls.lower(): cls for cls in models.__all__}
    if name.lower() not in found:
        raise UserError(f"PyKEEN has no model {name!r}; it has: {', '.join(sorted(found.values()))}")
    inverse = bool(arguments.pop("inverse", True))
    factory = factory_class(
        mapped_triples=train, num_entities=num_entities, num_relations=num_relations, create_inverse_triples=inverse
    )
    arguments.setdefault("random_seed", int(torch.initial_seed() % 2**31))
    state = torch.get_rng_state()
    try:
        return getattr(models, found[name.lower()])(triples_factory=factory, **arguments)
    except Exception as error:  # models end in any way on arguments that they do not expect
        raise UserError(f"PyKEEN's {name} cannot be made: {' '.join(str(error).split())[:200]}") from error
    finally:
        torch.set_rng_state(state)


def import_pykeen() -> tuple[Any, Any]:
    """``CoreTriplesFactory`` and ``pykeen.models``, imported when used: that takes seconds.

    Raises:
        UserError: not installed, or broken by a mismatched torchvision, which raises other errors than ImportError.
    """
    require("pykeen", "graphs")
    try:
        from pykeen import models
        from pykeen.triples import CoreTriplesFactory
    except Exception as error:
        raise UserError(
            f"PyKEEN cannot be imported: {type(error).__name__}: {error}; reinstall torchvision?"
        ) from error
    return CoreTriplesFactory, models
