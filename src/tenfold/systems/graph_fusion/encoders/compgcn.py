"""CompGCN (Vashishth et al. 2020) with weighted edges, so that injected triples send weaker messages."""

import itertools
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.systems.graph_fusion.encoders.check_arguments import at_least, one_of
from tenfold.systems.graph_fusion.encoders.conve import ConvTower
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer

Composition = Literal["corr", "mult", "sub"]


def compose(entities: Tensor, relations: Tensor, how: Composition) -> Tensor:
    """phi: circular correlation, product or difference of ``(M, d)`` entity and relation vectors."""
    if how == "sub":
        return entities - relations
    if how == "mult":
        return entities * relations
    spectrum = torch.fft.rfft(entities).conj() * torch.fft.rfft(relations)
    return torch.fft.irfft(spectrum, n=entities.shape[-1])


class CompGCNLayer(nn.Module):
    """One round of messages: along the edges, against them, and from each entity to itself.

    Args:
        width_in: d of the incoming vectors.
        width_out: d of the outgoing ones.
        composition: phi.
        dropout: of the messages' sums.
        bias: add a bias, as the official layers may.
    """

    def __init__(
        self, width_in: int, width_out: int, composition: Composition = "corr", dropout: float = 0.1, bias: bool = False
    ) -> None:
        super().__init__()
        self.composition = composition
        self.w_in, self.w_out, self.w_loop, self.w_rel = (
            nn.Parameter(nn.init.xavier_normal_(torch.empty(width_in, width_out))) for _ in range(4)
        )
        self.loop_rel = nn.Parameter(nn.init.xavier_normal_(torch.empty(1, width_in)))
        self.bias = nn.Parameter(torch.zeros(width_out)) if bias else None
        self.bn = nn.BatchNorm1d(width_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, z: Tensor, edges: Tensor, kinds: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Entities ``(N, d)``, relations ``(2R, d)``, edges ``(2, 2M)`` (receiver, sender), inverses second."""
        half = edges.shape[1] // 2

        def gather(part: slice, weight: Tensor) -> Tensor:
            messages = compose(x[edges[1, part]], z[kinds[part]], self.composition) * norms[part, None]
            # The matrix is applied to the sums: one product per entity and not one per edge.
            return torch.zeros_like(x).index_add(0, edges[0, part], messages) @ weight

        along, against = gather(slice(half), self.w_in), gather(slice(half, None), self.w_out)
        loop = compose(x, self.loop_rel, self.composition) @ self.w_loop
        out = (self.dropout(along) + self.dropout(against) + loop) / 3
        if self.bias is not None:
            out = out + self.bias
        return self.bn(out).tanh(), z @ self.w_rel


class CompGCN(QueryScorer):
    """A graph network over entities and relations, read by a decoder.

    Args:
        num_entities: N.
        num_relations: R.
        dim: width of the layers' output.
        initial_dim: width of the first vectors; ``dim`` where 0.
        layers: number of layers.
        composition: ``corr``, ``mult`` or ``sub``.
        decoder: ``conve``, ``distmult`` or ``transe``.
        dropout: within layers.
        hidden_dropout: of the layers' output.
        gamma: margin of the TransE decoder.
        bias: biases of the layers.
        decoder_options: arguments of ConvE's tower.
    """

    def __init__(
        self,
        num_entities: int,
        num_relations: int,
        dim: int = 200,
        initial_dim: int = 0,
        layers: int = 1,
        composition: Composition = "corr",
        decoder: Literal["conve", "distmult", "transe"] = "conve",
        dropout: float = 0.1,
        hidden_dropout: float = 0.3,
        gamma: float = 40.0,
        bias: bool = False,
        decoder_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(num_entities, num_relations)
        at_least(1, dim=dim, layers=layers)
        at_least(0, initial_dim=initial_dim)
        one_of("composition", composition, ("corr", "mult", "sub"))
        one_of("decoder", decoder, ("conve", "distmult", "transe"))
        initial = initial_dim or dim
        self.init_embed = nn.Parameter(nn.init.xavier_normal_(torch.empty(num_entities, initial)))
        self.init_rel = nn.Parameter(nn.init.xavier_normal_(torch.empty(2 * num_relations, initial)))
        widths = [initial, *[dim] * layers]
        self.layers = nn.ModuleList(
            CompGCNLayer(a, b, composition, dropout, bias) for a, b in itertools.pairwise(widths)
        )
        self.hidden_dropout = nn.Dropout(hidden_dropout)
        self.decoder, self.gamma = decoder, gamma
        self.similarity = "l1" if decoder == "transe" else "dot"
        self.tower = (
            ConvTower(dim, **{"arrange": "interleave", "channels": 200, "kernel": 7, **(decoder_options or {})})
            if decoder == "conve"
            else None
        )
        self.entity_biases = nn.Parameter(torch.zeros(num_entities))
        # The graph is part of the model: without its edges the entities' vectors cannot be computed.
        self.register_buffer("edges", torch.empty(2, 0, dtype=torch.int64))
        self.register_buffer("kinds", torch.empty(0, dtype=torch.int64))
        self.register_buffer("norms", torch.empty(0))

    def set_graph(self, edges: Tensor, relations: Tensor, weights: Tensor) -> None:
        """See `QueryScorer`; ``n_e`` is computed per direction from weighted degrees."""
        device = self.init_embed.device
        edges, relations, weights = edges.to(device), relations.to(device), weights.to(device).float()
        both = torch.cat([edges, edges.flip(0)], 1)
        self.edges, self.kinds = both, torch.cat([relations, relations + self.num_relations])
        norms = []
        for receivers, senders in (edges, edges.flip(0)):
            degree = torch.zeros(self.num_entities, device=device).index_add_(0, receivers, weights)
            root = torch.where(degree > 0, degree.clamp(min=1e-12).rsqrt(), 0.0)
            norms.append(root[receivers] * weights * root[senders])
        self.norms = torch.cat(norms)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("edges", "kinds", "norms"):  # a saved graph may have any number of edges
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.init_embed.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def encode(self) -> tuple[Tensor, Tensor]:
        """Vectors of all entities and relations after the layers."""
        x, z = self.init_embed, self.init_rel
        for layer in self.layers:
            x, z = layer(x, z, self.edges, self.kinds, self.norms)
            x = self.hidden_dropout(x)
        return x, z

    def candidate_vectors(self) -> Tensor:
        """See `QueryScorer`."""
        return self.encoding[0]

    def entity_vectors(self, entities: Tensor | None = None) -> Tensor:
        """See `QueryScorer`."""
        x = self.encoding[0]
        return x if entities is None else x[entities]

    def query_vectors(self, heads: Tensor, relations: Tensor) -> Tensor:
        """The decoder's query vectors."""
        x, z = self.encoding
        h, r = x[heads], z[relations]
        if self.tower is not None:
            return self.tower(h, r)
        return h * r if self.decoder == "distmult" else h + r

    def entity_bias(self) -> Tensor:
        """One bias per entity; with TransE the margin."""
        return (
            self.entity_biases.new_full((self.num_entities,), self.gamma)
            if self.decoder == "transe"
            else self.entity_biases
        )
