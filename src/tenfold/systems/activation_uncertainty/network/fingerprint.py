"""Whether a main model is the one that an estimator was fitted on.

Retraining, fine-tuning or quantising the main model invalidates its estimator. The fingerprint holds
the names and shapes of all parameters and buffers, a hash of their values, and the outputs on 64 made-up inputs, whose
recipe is kept and not the inputs: no row of a user's data goes into the artefact.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.seeds import derived_seed
from tenfold.systems.activation_uncertainty.network.calling import (
    Chooser,
    Inputs,
    call,
    device_of,
    eval_mode,
    main_output,
    to_device,
)

_PROBES = 64
_TOLERANCE = 1e-3


def fingerprint(model: nn.Module, example: Inputs, output: Chooser | None = None) -> dict[str, Any]:
    """The fingerprint of a model, as plain values.

    Args:
        model: the main model; left as it was.
        example: a batch, of which shapes, types and ranges are kept.
        output: picks the prediction from what the network gives.
    """
    recipe = _recipe(example)
    return {
        "shapes": _hash(f"{name}:{tuple(value.shape)}" for name, value in model.state_dict().items()),
        "values": _hash_values(model),
        "probe": recipe,
        "outputs": None if recipe is None else _outputs(model, recipe, output).tolist(),
    }


def check_fingerprint(model: nn.Module, expected: dict[str, Any], source: str, output: Chooser | None = None) -> None:
    """Refuse a model that the estimator does not belong to.

    Weights that differ in their bits but answer the same within 0.1 % (another precision, folded normalization under
    the same names) are accepted.

    Raises:
        UserError: parameters have other names or shapes, or the model gives other outputs.
    """
    if _hash(f"{name}:{tuple(value.shape)}" for name, value in model.state_dict().items()) != expected["shapes"]:
        raise UserError(f"{source} was fitted on another model: the names or shapes of its parameters differ")
    if expected["outputs"] is None:
        if _hash_values(model) != expected["values"]:
            raise UserError(f"{source} was fitted on another model: its weights differ; fit the estimator again")
        return
    wanted = torch.tensor(expected["outputs"], dtype=torch.float64)
    found = _outputs(model, expected["probe"], output)
    if found.shape != wanted.shape or not (found - wanted).abs().max() <= _TOLERANCE * wanted.abs().max().clamp(min=1):
        raise UserError(
            f"{source} was fitted on another model: the weights differ and so do the outputs, as after further "
            "training; fit the estimator again"
        )


def _hash(parts: Any) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _hash_values(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _recipe(example: Inputs) -> Any:
    """How inputs like the example are made; ``None`` where it holds anything but tensors."""
    if isinstance(example, Tensor):
        made: dict[str, Any] = {"shape": list(example.shape[1:]), "type": str(example.dtype).removeprefix("torch.")}
        if example.is_floating_point():
            values = example.double()
            return made | {"mean": float(values.mean()), "deviation": float(values.std(correction=0))}
        return made | {"low": int(example.min()), "high": int(example.max())}
    if isinstance(example, dict):
        parts = {name: _recipe(value) for name, value in example.items()}
        return None if any(part is None for part in parts.values()) else {"named": parts}
    if isinstance(example, tuple | list):
        listed = [_recipe(value) for value in example]
        return None if any(part is None for part in listed) else {"listed": listed}
    return None


def _make(recipe: Any, place: int = 0) -> Inputs:
    if "named" in recipe:
        return {name: _make(part, place + n + 1) for n, (name, part) in enumerate(recipe["named"].items())}
    if "listed" in recipe:
        return tuple(_make(part, place + n + 1) for n, part in enumerate(recipe["listed"]))
    generator = torch.Generator().manual_seed(derived_seed(_PROBES, place))
    shape, dtype = (_PROBES, *recipe["shape"]), getattr(torch, recipe["type"])
    if "mean" in recipe:
        return (recipe["mean"] + recipe["deviation"] * torch.randn(shape, generator=generator)).to(dtype)
    return torch.randint(recipe["low"], recipe["high"] + 1, shape, generator=generator).to(dtype)


def _outputs(model: nn.Module, recipe: Any, output: Chooser | None) -> Tensor:
    """One number per probe, rounded to what survives another machine."""
    inputs = to_device(_make(recipe), device_of(model))
    with torch.no_grad(), eval_mode(model):
        found = main_output(call(model, inputs), output)
    return found.double().flatten(1).mean(1).cpu() if found.ndim > 1 else found.double().cpu()
