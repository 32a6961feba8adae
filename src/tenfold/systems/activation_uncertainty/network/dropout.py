"""Dropout on in a network that is otherwise in eval mode, and off again without a trace.


    dropout = DropoutController(model, example, rate=0.1)
    with dropout.on(seed=0):
        model(x)  # other units are dropped in every pass and for every sample

Only the chosen places are random: normalization layers keep their statistics, every flag and rate is put back, also
after an exception, and the global random state is as before.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tenfold.errors import UserError
from tenfold.models.taps import find_module, first_tensor
from tenfold.systems.activation_uncertainty.network.batches import structure_of
from tenfold.systems.activation_uncertainty.network.calling import Inputs, eval_mode
from tenfold.systems.activation_uncertainty.network.dropout_sites import (
    ATTENTION,
    Call,
    DropoutSite,
    call_rate,
    choose_sites,
    dropout_arguments,
    find_dropout,
    ordinary_layers,
    rate_attribute,
)
from tenfold.systems.activation_uncertainty.network.module_stack import ModuleStack
from tenfold.systems.activation_uncertainty.network.sample_masks import SampleMasks
from tenfold.systems.activation_uncertainty.network.unseen_noise import refuse_unseen_noise

_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
INPUTS = "inputs"
"""Stands for the network's floating-point inputs in ``add``."""


class DropoutController:
    """Switches dropout at chosen places of a network (Monte-Carlo dropout).

    Args:
        model: any network. It is run once to find its dropout, and left as it was.
        example: a small batch, see ``Inputs``.
        places: ``all``, ``first``, ``last``, or names of modules (each with all below it); of the dropout that the
            network has.
        rate: probability of dropping a unit, at all places; the network's own where ``None``.
        add: modules after which units are dropped although the network has no dropout there: names, ``embeddings``
            (after every embedding) or ``inputs`` (of the network, floating-point ones). Needs ``rate``. Such dropout
            the network was not trained with; the artefact says so.
        drop_path: whether stochastic depth counts as dropout.
        sites: exactly these, as another controller of an equal network found them; ``places``, ``rate``, ``add`` and
            ``drop_path`` are then not looked at.

    Raises:
        UserError: there is no dropout at these places, a rate is not in (0, 1), or, where all places are asked for, the
            network draws random numbers in training that are no dropout that can be switched.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
        >>> [site.path for site in DropoutController(net, torch.zeros(2, 4)).sites]
        ['2']
    """

    def __init__(
        self,
        model: nn.Module,
        example: Inputs,
        *,
        places: str | Sequence[str] = "all",
        rate: float | None = None,
        add: str | Sequence[str] = (),
        drop_path: bool = False,
        sites: Sequence[DropoutSite] | None = None,
    ) -> None:
        self.model = model
        self.structure = structure_of(example)
        if sites is not None:
            known = {(site.path, site.kind, site.call) for site in find_dropout(model, example, drop_path=True)}
            for site in sites:
                if site.kind == "added":
                    _added_sites(model, [site.path], site.rate)
                elif (site.path, site.kind, site.call) not in known:
                    raise UserError(f"{type(model).__name__} has no dropout of kind {site.kind} at {site.path!r}")
            own, added = list(sites), []
        else:
            if places == "all":
                refuse_unseen_noise(model, example)
            own = choose_sites(find_dropout(model, example, drop_path=drop_path), places, rate)
            added = _added_sites(model, [add] if isinstance(add, str) else list(add), rate)
        if not own and not added:
            raise UserError(
                f"{type(model).__name__} has no dropout: name modules after which units are dropped (add) and a rate, "
                "or give a network that was trained with dropout"
            )
        self.sites: tuple[DropoutSite, ...] = (*own, *added)
        self._modules = dict(model.named_modules())
        self._calls = {site.call: site.rate for site in self.sites if site.kind in ("functional", "owner")}
        self._owners = {site.path for site in self.sites if site.kind == "owner"}

    @property
    def inference_only(self) -> bool:
        """Whether some of the dropout is not the network's own, so that it was not trained with it."""
        return any(site.kind == "added" for site in self.sites)

    @contextmanager
    def on(self, seed: int | None = None, masks: SampleMasks | None = None) -> Iterator[None]:
        """Within the block the chosen places drop units and everything else is in eval mode.

        Args:
            seed: of the masks; what the global generator draws goes on where ``None``, and is put back in any case.
            masks: draws that depend on the sample alone, see
                ``SampleMasks``.
        """
        with ExitStack() as stack:
            stack.enter_context(eval_mode(self.model))
            stack.enter_context(ordinary_layers())
            if seed is not None:
                stack.enter_context(torch.random.fork_rng())
                torch.manual_seed(seed)
            stack.callback(self._restore_rates, self._set_rates())
            for site in self.sites:
                if site.kind == "added":
                    stack.callback(self._add(site).remove)
            if self._calls:
                modules = stack.enter_context(ModuleStack().follow(self.model))
                stack.enter_context(_Interception(modules, self._calls, self._owners))
            if masks is not None:
                stack.enter_context(masks)
            yield

    def _set_rates(self) -> list[tuple[nn.Module, str, float]]:
        """Set flags and rates; gives the rates that were there. The flags are put back by ``eval_mode``."""
        before = []
        for site in self.sites:
            if site.kind in ("added", "functional"):
                continue
            module = self._modules[site.path]
            module.training = True  # of this module alone: its children stay in eval mode
            attribute = rate_attribute(module)
            if attribute is not None and site.kind != "owner":
                before.append((module, attribute, getattr(module, attribute)))
                setattr(module, attribute, site.rate)
        return before

    @staticmethod
    def _restore_rates(before: list[tuple[nn.Module, str, float]]) -> None:
        for module, attribute, rate in before:
            setattr(module, attribute, rate)

    def _add(self, site: DropoutSite) -> Any:
        def drop(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_floating_point():
                return torch.ops.aten.dropout(value, site.rate, True)  # which no interception takes for a call
            return value

        if site.path == INPUTS:

            def drop_inputs(module: nn.Module, args: Any, kwargs: Any) -> Any:
                return tuple(drop(value) for value in args), {name: drop(value) for name, value in kwargs.items()}

            return self.model.register_forward_pre_hook(drop_inputs, with_kwargs=True)

        def drop_output(module: nn.Module, args: Any, output: Any) -> Any:
            first = first_tensor(output)
            if isinstance(output, Tensor):
                return drop(output)
            return type(output)(drop(value) if value is first else value for value in output)

        return self._modules[site.path].register_forward_hook(drop_output)


def _added_sites(model: nn.Module, names: Sequence[str], rate: float | None) -> list[DropoutSite]:
    if names and (rate is None or not 0 < rate < 1):
        raise UserError(f"dropout that is added needs a rate above 0 and below 1; got {rate}")
    paths: list[str] = []
    for name in names:
        if name == "embeddings":
            embeddings = [p for p, m in model.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
            if not embeddings:
                raise UserError(f"{type(model).__name__} has no embedding after which units could be dropped")
            paths += embeddings
        else:
            if name != INPUTS:
                find_module(model, name)
            paths.append(name)
    return [DropoutSite(path, "added", float(rate or 0)) for path in dict.fromkeys(paths)]


class _Interception(TorchFunctionMode):
    """Turns chosen calls on, at their rates, and those that an owner's flag would turn on beside them off."""

    def __init__(self, stack: ModuleStack, rates: dict[Call, float], owners: set[str]) -> None:
        super().__init__()
        self.stack = stack
        self.rates = rates
        self.owners = owners

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        path = self.stack.current
        own = call_rate(func, args, kwargs)
        rate = self.rates.get(Call(path, func is ATTENTION, own)) if own > 0 else None
        if rate is None and own > 0 and path in self.owners:
            rate = 0.0
        if rate is not None and func is ATTENTION:
            return func(
                *args[:4],
                **{**dict(zip(("dropout_p", "is_causal"), args[4:], strict=False)), **kwargs, "dropout_p": rate},
            )
        if rate is not None:
            return func(dropout_arguments(args, kwargs)[0], rate, rate > 0)
        if func is F.batch_norm and path in self.owners:  # the flag was set for the dropout alone
            given = dict(zip(_BATCH_NORM, args, strict=False)) | kwargs
            return func(**{**given, "training": given.get("running_mean") is None})
        return func(*args, **kwargs)
