"""Main models by name, for the recipe and for the manifests of saved models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold.errors import UserError
from tenfold.files import first_line
from tenfold.models.builders import named_network, network_from_factory
from tenfold.models.folder import plain_arguments
from tenfold.systems.activation_uncertainty.main_models.networks import (
    ClickNetwork,
    RatingNetwork,
    image_cnn,
    image_mlp,
)

OWN = ("mlp", "cnn", "ratings", "clicks")


def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    image_shape: Sequence[int] | None = None,
    sizes: Any = None,
    rate: float | None = None,
    arguments: dict[str, Any] | None = None,
    factory: str | None = None,
    weights: str | None = None,
    from_file: str | Path | None = None,
) -> nn.Module:
    """A main model by name.

    Args:
        name: see ``ModelOptions``.
        num_classes: for images.
        image_shape: for images, ``(channels, height, width)``.
        sizes: for tables, number of values of the columns.
        rate: of dropout, for the networks made here.
        arguments: further arguments of the network.
        factory: of a network of the user's.
        weights: checkpoint to start from, for networks that are not made here.
        from_file: the file that gave name and arguments, if it was not the user: only plain arguments are then taken.

    Raises:
        UserError: unknown name, a network that does not fit the data, or arguments that it does not take.
    """
    arguments = dict(arguments or {}) if from_file is None else plain_arguments(arguments or {}, from_file)
    images = num_classes is not None
    if name in OWN:
        if weights is not None:
            raise UserError(f"model.weights is for networks that are not made here; {name!r} is trained")
        if images != (name in ("mlp", "cnn")):
            raise UserError(
                f"model {name!r} does not fit the data: mlp and cnn are for images, ratings and clicks for tables"
            )
        arguments = {**({} if rate is None else {"rate": rate}), **arguments}
        try:
            if images:
                make: Any = image_mlp if name == "mlp" else image_cnn
                return make(num_classes=num_classes, image_shape=list(image_shape or ()), **arguments)
            made: type[RatingNetwork] | type[ClickNetwork] = RatingNetwork if name == "ratings" else ClickNetwork
            return made(sizes, **arguments)
        except Exception as error:  # arguments of any kind can end a network anywhere
            raise UserError(f"model {name!r} cannot be built on these data: {first_line(error)}") from error
    if name == "factory" and not images:
        return network_from_factory(factory, sizes=sizes, **arguments)
    if not images:
        raise UserError(f"model {name!r} is for images; tables take ratings, clicks or factory")
    return named_network(
        name,
        num_classes=num_classes or 0,
        arguments=arguments,
        factory=factory,
        weights=weights,
        others=OWN,
        from_file=from_file,
    )


def dense_part(model: nn.Module) -> tuple[nn.Module, Any]:
    """The part of a network that ``torch.fx`` can trace, and what turns inputs into its inputs."""
    if isinstance(model, RatingNetwork | ClickNetwork):
        return model.dense, lambda inputs: model.embed(**inputs)
    return model, lambda inputs: inputs


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights as they are written."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
