"""Labels from the spread of an ensemble instead of dropout (Chen et al., WSDM 2021)."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty.labels.passes import DropoutLabels
from tenfold.systems.activation_uncertainty.labels.targets import Target
from tenfold.systems.activation_uncertainty.network.batches import Ids, Parts, digest_of_rows, join_ids, read_batches
from tenfold.systems.activation_uncertainty.network.calling import (
    Chooser,
    call,
    device_of,
    eval_mode,
    main_output,
    to_device,
)
from tenfold.systems.activation_uncertainty.network.features import ActivationFeatures, read_features


def ensemble_labels(
    models: Sequence[nn.Module],
    batches: Callable[[], Iterable[Any]],
    target: Target,
    *,
    features: ActivationFeatures,
    served: int = 0,
    output: Chooser | None = None,
    parts: Parts | None = None,
) -> DropoutLabels:
    """Labels from the spread of an ensemble instead of dropout (paper B), features from its served member.

    Args:
        models: members, trained on the same data with other seeds or orders.
        batches: gives the batches, once for each member.
        target: definition of the uncertainty; the class of ``class`` is the served member's.
        features: made on the served member.
        served: which member is served.
        output: picks the prediction from what a network gives.
        parts: what the parts of a batch are, see ``network.batches``.

    Raises:
        UserError: fewer than two members, or two that are the same.
    """
    if len(models) < 2:
        raise UserError(f"an ensemble needs at least 2 members; got {len(models)}")
    states = [torch.cat([p.detach().flatten().float().cpu() for p in model.parameters()]) for model in models]
    for n, state in enumerate(states):
        for other in range(n):
            if state.shape == states[other].shape and torch.equal(state, states[other]):
                raise UserError(f"members {other} and {n} of the ensemble are the same network")
    passes = [_member_pass(model, batches(), features, target, output, parts) for model in models]
    if len({digest for *_, digest in passes}) > 1:
        raise UserError(
            "batches gives other rows, or another order, each time: an ensemble needs the same for all members"
        )
    ids, outputs, _ = passes[served]
    everyone = torch.stack([found for _, found, _ in passes])
    quantities = target.quantities(everyone)
    mean = quantities.mean(0)
    m2 = (quantities - mean).square().sum(0)
    predicted = outputs.argmax(-1) if target.classes else outputs
    spread = target.spread(mean, m2, len(models), predicted)
    read = read_features(models[served], batches(), features, output, parts)
    return DropoutLabels(ids, outputs.float(), mean.float(), spread.float(), len(models), target, read)


@torch.no_grad()
def _member_pass(
    model: nn.Module,
    batches: Iterable[Any],
    features: ActivationFeatures,
    target: Target,
    output: Chooser | None,
    parts: Parts | None,
) -> tuple[Ids, Tensor, str]:
    """Ids, outputs, and a digest of the inputs."""
    ids, outputs, digest = [], [], hashlib.sha256()
    with eval_mode(model):
        for inputs, own in read_batches(batches, features.structure, parts):
            ids.append(own)
            digest.update(digest_of_rows(inputs, own).encode())
            outputs.append(target.check(main_output(call(model, to_device(inputs, device_of(model))), output)).cpu())
    if not ids:
        raise UserError("there are no rows: the data are empty")
    return join_ids(ids), torch.cat(outputs), digest.hexdigest()
