"""Labels from the spread of an ensemble instead of dropout (Chen et al., WSDM 2021)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty.labels.passes import DropoutLabels
from tenfold.systems.activation_uncertainty.labels.targets import Target
from tenfold.systems.activation_uncertainty.network.calling import (
    Chooser,
    call,
    device_of,
    eval_mode,
    main_output,
    numbered,
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
) -> DropoutLabels:
    """Labels from the spread of an ensemble instead of dropout (paper B), features from its served member.

    Args:
        models: members, trained on the same data with other seeds or orders.
        batches: gives the batches, once for each member.
        target: definition of the uncertainty; the class of ``class`` is the served member's.
        features: made on the served member.
        served: which member is served.
        output: picks the prediction from what a network gives.

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
    passes = [_member_pass(model, batches(), target, output) for model in models]
    ids, outputs = passes[served]
    everyone = torch.stack([found for _, found in passes])
    quantities = target.quantities(everyone)
    mean = quantities.mean(0)
    m2 = (quantities - mean).square().sum(0)
    predicted = outputs.argmax(-1) if target.classes else outputs
    spread = target.spread(mean, m2, len(models), predicted)
    read = read_features(models[served], batches(), features, output)
    return DropoutLabels(ids, outputs.float(), mean.float(), spread.float(), len(models), target, read)


@torch.no_grad()
def _member_pass(
    model: nn.Module, batches: Iterable[Any], target: Target, output: Chooser | None
) -> tuple[Tensor, Tensor]:
    ids, outputs = [], []
    with eval_mode(model):
        for inputs, own in numbered(batches):
            ids.append(own)
            outputs.append(target.check(main_output(call(model, to_device(inputs, device_of(model))), output)).cpu())
    return torch.cat(ids), torch.cat(outputs)
