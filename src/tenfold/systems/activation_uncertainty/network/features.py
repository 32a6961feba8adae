"""Activation-strength features: how strongly each unit fires in one pass without dropout.

Features are pooled while the network runs, at the moment a tapped module has given its output: nothing that happens
in place later can change them, and no activation is kept.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.models.taps import tap_hooks
from tenfold.systems.activation_uncertainty.network.activations import FUNCTIONS, Tap, find_activations, named_taps
from tenfold.systems.activation_uncertainty.network.batches import Parts, read_batches, structure_of
from tenfold.systems.activation_uncertainty.network.calling import (
    Chooser,
    Inputs,
    call,
    device_of,
    eval_mode,
    main_output,
    mask_of,
    to_device,
)

Form = Literal["value", "on-off", "both"]
Pool = Literal["auto", "class-token", "tokens"]


class _Description(BaseModel):
    """What ``ActivationFeatures.to_dict`` gives, as a file may hold it."""

    model_config = ConfigDict(extra="forbid")

    taps: list[Tap]
    form: Form
    pool: Pool
    logits: bool
    blocks: dict[str, Annotated[int, Field(ge=1)]]


class ActivationFeatures:
    """Reads activation-strength features off a network.

    Dense activations ``(batch, units)`` are features as they are. Maps of a convolution give mean, maximum and share
    of positive positions per channel; token activations, mean and share of positive tokens per unit, over the valid
    tokens where the inputs hold an attention mask, by name or by position (the poolers are reconstructed).

    Args:
        model: the network; left as it was.
        example: a small batch.
        taps: names of modules, see ``network.activations``; all hidden activations
            where ``auto``.
        form: ``value``, ``on-off`` (whether, or how often, a unit fires) or ``both``.
        pool: ``auto``; ``class-token``: token activations at the first token; ``tokens``: one row per token, for
            predictions per token.
        extras: ``embeddings`` (outputs of embedding layers) and ``logits`` as further features.
        output: picks the logits from what the network gives.

    Raises:
        UserError: there is no activation to read, or a tap does not exist.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Inputs,
        *,
        taps: str | Sequence[str] = "auto",
        form: Form = "value",
        pool: Pool = "auto",
        extras: Sequence[str] = (),
        output: Chooser | None = None,
    ) -> None:
        for value, allowed, name in ((form, Form, "form"), (pool, Pool, "pool")):
            if value not in get_args(allowed):
                raise UserError(f"{name} must be one of {', '.join(get_args(allowed))}; got {value!r}")
        if unknown := set(extras) - {"embeddings", "logits"}:
            raise UserError(f"extras are embeddings and logits; got {sorted(unknown)[0]!r}")
        self.model = model
        self.form: Form = form
        self.pool: Pool = pool
        self.logits = "logits" in extras
        self.structure = structure_of(example)
        if taps == "auto":
            self.taps = find_activations(model, example)
        else:
            self.taps = named_taps(model, example, [taps] if isinstance(taps, str) else list(taps))
        if "embeddings" in extras:
            embeddings = [p for p, m in model.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
            self.taps = [*named_taps(model, example, embeddings), *self.taps]
        if not self.taps and not self.logits:
            raise UserError(
                f"{type(model).__name__} has no activation that can be read at a module: name modules with taps"
            )
        with torch.no_grad(), eval_mode(model), self.collect() as read:
            raw = call(model, example)
        widths = [part.shape[-1] for part in read.parts(main_output(raw, output))]
        names = [*(tap.name for tap in self.taps), *(["logits"] if self.logits else [])]
        self.blocks: dict[str, int] = dict(zip(names, widths, strict=True))

    @property
    def width(self) -> int:
        """Number of features."""
        return sum(self.blocks.values())

    def slices(self) -> dict[str, slice]:
        """Where each tap's features stand."""
        stops = torch.tensor([0, *self.blocks.values()]).cumsum(0).tolist()
        return {name: slice(stops[n], stops[n + 1]) for n, name in enumerate(self.blocks)}

    def only(self, names: Sequence[str]) -> "ActivationFeatures":
        """The same with some of the taps, in their own order."""
        chosen = object.__new__(ActivationFeatures)
        chosen.__dict__ |= self.__dict__
        chosen.taps = [tap for tap in self.taps if tap.name in names]
        chosen.logits = self.logits and "logits" in names
        chosen.blocks = {name: width for name, width in self.blocks.items() if name in names}
        return chosen

    def to_dict(self) -> dict[str, Any]:
        """Plain values from which ``from_dict`` makes the same object for an equal network."""
        return {
            "taps": [asdict(tap) | {"shape": list(tap.shape)} for tap in self.taps],
            "form": self.form,
            "pool": self.pool,
            "logits": self.logits,
            "blocks": self.blocks,
        }

    @classmethod
    def from_dict(cls, model: nn.Module, values: dict[str, Any]) -> "ActivationFeatures":
        """Features as they were described, for ``model``; nothing is run.

        Raises:
            UserError: the description is damaged.
        """
        try:
            found = _Description.model_validate(values)
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise UserError(f"the description of features is damaged at {place}: {error.errors()[0]['msg']}") from error
        names = [*(tap.name for tap in found.taps), *(["logits"] if found.logits else [])]
        if names != list(found.blocks) or any(tap.function not in (None, *FUNCTIONS) for tap in found.taps):
            raise UserError("the description of features is damaged: its blocks are not those of its taps")
        made = object.__new__(cls)
        made.model, made.structure = model, None
        made.taps, made.form, made.pool = found.taps, found.form, found.pool
        made.logits, made.blocks = found.logits, found.blocks
        return made

    @contextmanager
    def collect(self, mask: Tensor | None = None) -> Iterator["ReadFeatures"]:
        """Read the features of one forward pass within the block.

        Args:
            mask: ``(batch, tokens)``, true for valid tokens; all where ``None``.
        """
        read = ReadFeatures(self, mask)
        by_path: dict[str, list[Tap]] = {}
        for tap in self.taps:
            by_path.setdefault(tap.path, []).append(tap)

        def visit(path: str, output: Tensor) -> None:
            for tap in by_path[path]:
                read.pooled[tap.name] = self.read(tap, output, read.mask)

        with tap_hooks(self.model, list(by_path), visit, this_thread=True):
            yield read

    def read(self, tap: Tap, output: Tensor, mask: Tensor | None) -> Tensor:
        """Features ``(rows, width)`` of one module's output."""
        x = FUNCTIONS[tap.function](output) if tap.function else output
        if x.ndim == 2 and self.form == "value":
            return x
        if tap.channels_first:
            x = x.movedim(1, -1)
        if x.ndim > 2 and self.pool == "tokens" and not tap.channels_first:
            x = x.flatten(0, -2)
        elif x.ndim > 2 and self.pool == "class-token" and not tap.channels_first:
            x = x[:, 0]
        if x.ndim == 2:
            parts = []
            if self.form in ("value", "both"):
                parts.append(x)
            if self.form in ("on-off", "both"):
                parts.append((x > tap.level).to(x.dtype))
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        x = x.flatten(1, -2)
        on = (x > tap.level).to(x.dtype)
        if mask is not None and mask.shape == x.shape[:2]:
            weights = mask.to(x.dtype)
            weights = (weights / weights.sum(1, keepdim=True).clamp(min=1))[..., None]
            mean, share = (x * weights).sum(1), (on * weights).sum(1)
        else:
            mean, share = x.mean(1), on.mean(1)
        if self.form == "on-off":
            return share
        if tap.channels_first:
            return torch.cat([mean, x.amax(1), share], dim=1)
        return torch.cat([mean, share], dim=1)


class ReadFeatures:
    """The features of one pass, while and after it runs."""

    def __init__(self, owner: ActivationFeatures, mask: Tensor | None) -> None:
        self.owner = owner
        self.mask = mask
        self.pooled: dict[str, Tensor] = {}

    def parts(self, output: Tensor) -> list[Tensor]:
        """One tensor ``(rows, width)`` per block.

        Args:
            output: the network's logits.

        Raises:
            UserError: a tapped module did not run.
        """
        for tap in self.owner.taps:
            if tap.name not in self.pooled:
                raise UserError(f"tap {tap.name!r} did not run in this forward pass")
        parts = [self.pooled[tap.name] for tap in self.owner.taps]
        if self.owner.logits:
            parts.append(output.flatten(0, -2) if output.ndim > 1 else output[:, None])
        return parts

    def features(self, output: Tensor) -> Tensor:
        """``(rows, width)`` all features in the order of the taps."""
        parts = self.parts(output)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@torch.no_grad()
def read_features(
    model: nn.Module,
    batches: Iterable[Any],
    features: ActivationFeatures,
    output: Chooser | None = None,
    parts: Parts | None = None,
) -> Tensor:
    """Features ``(rows, width)`` float32 of all inputs, from one pass without dropout, on the CPU.

    Args:
        model: the network.
        batches: inputs, or ``Batch``.
        features: what is read.
        output: picks the prediction from what the network gives.
        parts: what the parts of a batch are, see ``network.batches``.
    """
    found = []
    with eval_mode(model):
        for inputs, _ in read_batches(batches, features.structure, parts):
            placed = to_device(inputs, device_of(model))
            with features.collect(mask_of(model, placed)) as read:
                out = main_output(call(model, placed), output)
            found.append(read.features(out).float().cpu())
    if not found:
        raise UserError("there are no rows: the data are empty")
    return torch.cat(found)
