"""Whether a main model is the one that an estimator was fitted on.

Retraining, fine-tuning or quantising the main model invalidates its estimator. The fingerprint holds the names and
shapes of all parameters and buffers, a hash of their values, and the outputs on 64 made-up inputs, whose recipe is kept
and not the inputs: no row of a user's data goes into the artefact. Whole numbers are made column by column, below a
power of two that the column reaches, so that they stay inside its table.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
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
_COLUMNS = 4096
"""Columns that get bounds of their own; of more (an image's bytes) all share one."""

Shape = Annotated[list[Annotated[int, Field(ge=0, le=2**20)]], Field(max_length=8)]
DTYPES = r"^(bfloat16|float16|float32|float64|u?int8|int16|int32|int64|bool)$"
_Bounds = int | list[int]


class Probe(BaseModel):
    """How made-up inputs are drawn: real or whole numbers, or several values by name or in a row.

    Attributes:
        shape: of one row.
        type: of the numbers, by torch's name.
        mean: of real numbers.
        deviation: of real numbers.
        low: smallest whole number; one for all columns, or one for each.
        high: largest whole number, likewise.
        named: values by name.
        listed: values in a row.
    """

    model_config = ConfigDict(extra="forbid")

    shape: Shape | None = None
    type: str | None = Field(default=None, pattern=DTYPES)
    mean: float | None = None
    deviation: float | None = None
    low: _Bounds | None = None
    high: _Bounds | None = None
    named: dict[str, "Probe"] | None = None
    listed: list["Probe"] | None = None


class Fingerprint(BaseModel):
    """What is known of a model.

    Attributes:
        shapes: hash of the names and shapes of its state.
        values: hash of its state's bytes.
        probe: recipe of made-up inputs; none where it cannot be called on any.
        outputs: ``(64,)`` one number for each of these.
    """

    model_config = ConfigDict(extra="forbid")

    shapes: str
    values: str
    probe: Probe | None = None
    outputs: Annotated[list[float], Field(max_length=_PROBES)] | None = None


def fingerprint(model: nn.Module, example: Inputs, output: Chooser | None = None) -> Fingerprint:
    """The fingerprint of a model.

    Args:
        model: the main model; left as it was.
        example: a batch, of which shapes, types and ranges are kept.
        output: picks the prediction from what the network gives.
    """
    probe = _probe_like(example)
    outputs: Tensor | None = None
    if probe is not None:
        try:
            outputs = _outputs(model, probe, output)
        except UserError:  # made-up inputs may mean nothing to it: then its weights alone are compared
            outputs = None
    if outputs is None or not torch.isfinite(outputs).all():
        probe, outputs = None, None
    return Fingerprint(
        shapes=_hash_of_shapes(model),
        values=hash_of_weights(model),
        probe=probe,
        outputs=None if outputs is None else outputs.tolist(),
    )


def check_fingerprint(model: nn.Module, expected: Fingerprint, source: str, output: Chooser | None = None) -> None:
    """Refuse a model that the estimator does not belong to.

    Weights that differ in their bits but answer the same within 0.1 % (another precision, folded normalization under
    the same names) are accepted.

    Raises:
        UserError: parameters have other names or shapes, or the model gives other outputs.
    """
    if _hash_of_shapes(model) != expected.shapes:
        raise UserError(f"{source} was fitted on another model: the names or shapes of its parameters differ")
    if expected.probe is None or expected.outputs is None:
        if hash_of_weights(model) != expected.values:
            raise UserError(f"{source} was fitted on another model: its weights differ; fit the estimator again")
        return
    wanted = torch.tensor(expected.outputs, dtype=torch.float64)
    found = _outputs(model, expected.probe, output)
    if found.shape != wanted.shape or not (found - wanted).abs().max() <= _TOLERANCE * wanted.abs().max().clamp(min=1):
        raise UserError(
            f"{source} was fitted on another model: the weights differ and so do the outputs, as after further "
            "training; fit the estimator again"
        )


def _hash_of_shapes(model: nn.Module) -> str:
    shapes = (f"{name}:{tuple(getattr(value, 'shape', ()))}" for name, value in model.state_dict().items())
    return hashlib.sha256("\n".join(shapes).encode()).hexdigest()


def hash_of_weights(model: nn.Module) -> str:
    """A hash of all parameters and buffers, byte by byte."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _probe_like(example: Inputs) -> Probe | None:
    """How inputs like the example are made; ``None`` where it holds anything but tensors."""
    if isinstance(example, Tensor):
        shape, dtype = list(example.shape[1:]), str(example.dtype).removeprefix("torch.")
        if example.is_floating_point():
            values = example.double()
            mean, deviation = float(values.mean()), float(values.std(correction=0))
            return Probe(shape=shape, type=dtype, mean=mean, deviation=deviation)
        if example.is_complex():
            return None
        low, high = _bounds(example.long().flatten(1) if example.ndim > 1 else example.long()[:, None])
        return Probe(shape=shape, type=dtype, low=low, high=high)
    if isinstance(example, Mapping):
        named = {str(name): _probe_like(value) for name, value in example.items()}
        return None if None in named.values() else Probe(named=named)  # type: ignore[arg-type]
    if isinstance(example, tuple | list):
        listed = [_probe_like(value) for value in example]
        return None if None in listed else Probe(listed=listed)  # type: ignore[arg-type]
    return None


def _bounds(columns: Tensor) -> tuple[_Bounds, _Bounds]:
    """Smallest and largest number of each column ``(rows, columns)``, to a power of two."""
    low, high = columns.amin(0), columns.amax(0)
    if len(low) > _COLUMNS:
        low, high = low.amax(0, keepdim=True), high.amin(0, keepdim=True)
    pairs = [_coarse(*pair) for pair in zip(low.tolist(), high.tolist(), strict=True)]
    if len(set(pairs)) == 1:
        return pairs[0]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _coarse(low: int, high: int) -> tuple[int, int]:
    """A range inside ``low .. high``, or from 0 up, that does not tell the numbers themselves."""
    if low == high and low in (0, 1):  # a mask, or a flag
        return low, low
    if high < 0:
        return high, high
    return (0 if low >= 0 else -(1 << ((-low).bit_length() - 1))), (1 << ((high + 1).bit_length() - 1)) - 1


def _make(probe: Probe, place: int = 0) -> Inputs:
    if probe.named is not None:
        return {name: _make(part, place + n + 1) for n, (name, part) in enumerate(probe.named.items())}
    if probe.listed is not None:
        return tuple(_make(part, place + n + 1) for n, part in enumerate(probe.listed))
    if probe.shape is None or probe.type is None or torch.Size(probe.shape).numel() > 2**24:
        raise UserError("the fingerprint's recipe of inputs is damaged")
    generator = torch.Generator().manual_seed(derived_seed(_PROBES, place))
    shape, dtype = (_PROBES, *probe.shape), getattr(torch, probe.type)
    if probe.mean is not None and probe.deviation is not None:
        return (probe.mean + probe.deviation * torch.randn(shape, generator=generator)).to(dtype)
    low, high = torch.tensor(probe.low), torch.tensor(probe.high)
    if low.shape != high.shape or low.numel() not in (1, torch.Size(probe.shape).numel()):
        raise UserError("the fingerprint's recipe of inputs is damaged")
    if low.ndim == 0:
        return torch.randint(int(low), int(high) + 1, shape, generator=generator).to(dtype)
    drawn = torch.rand((_PROBES, low.numel()), generator=generator, dtype=torch.float64)
    return (low + (drawn * (high - low + 1)).long()).minimum(high).reshape(shape).to(dtype)


def _outputs(model: nn.Module, probe: Probe, output: Chooser | None) -> Tensor:
    """One number per probe, rounded to what survives another machine."""
    inputs = to_device(_make(probe), device_of(model))
    with torch.no_grad(), eval_mode(model):
        found = main_output(call(model, inputs), output)
    return found.double().flatten(1).mean(1).cpu() if found.ndim > 1 else found.double().cpu()
