"""Where a network drops units: found by running it, so that functional and attention dropout are seen, too.

Five kinds of sites:

    module      nn.Dropout and its kin, recurrent layers with dropout between them
    attention   nn.MultiheadAttention
    functional  calls of F.dropout(x, p, self.training) in a module's forward
    owner       calls that ask for dropout only while the module trains: F.dropout(x, p if self.training else 0),
                F.scaled_dot_product_attention(..., dropout_p=p if self.training else 0)
    drop-path   stochastic depth: residual branches dropped whole, per sample; only on request

The first two are switched by their flag and rate. A functional site is switched by intercepting its calls, which
leaves every flag alone. An owner's flag is set, but not its children's: a normalization layer below it stays frozen.
Calls in one module are told apart by their function and their own rate: each is a site of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty.network.calling import (
    Chooser,
    Inputs,
    batch_size,
    call,
    eval_mode,
    main_output,
)
from tenfold.systems.activation_uncertainty.network.module_stack import ModuleStack

Kind = Literal["module", "attention", "functional", "owner", "drop-path", "added"]

DROPOUT_FUNCTIONS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
    torch.alpha_dropout,
    torch.feature_dropout,
    torch.feature_alpha_dropout,
)
ATTENTION = F.scaled_dot_product_attention
_DROP_PATHS = ("DropPath", "StochasticDepth")


@dataclass(frozen=True)
class DropoutSite:
    """One place where units are dropped.

    Attributes:
        path: the module's name in ``model.named_modules()``; for ``added`` sites, of the module whose output is
            dropped, or ``inputs``.
        kind: see the module's description; ``added`` for a place that has no dropout of its own.
        rate: probability with which a unit is dropped.
        own_rate: the rate of the calls in the network, where that is another: the site of a call is known by it.
        attention: whether the calls are of ``scaled_dot_product_attention``.
    """

    path: str
    kind: Kind
    rate: float
    own_rate: float | None = None
    attention: bool = False

    @property
    def call(self) -> "Call":
        """What tells a site of calls from others in the same module."""
        return Call(self.path, self.attention, self.rate if self.own_rate is None else self.own_rate)


class Call(NamedTuple):
    """Calls in one module that drop units by the same function at the same rate."""

    path: str
    attention: bool
    rate: float


def dropout_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, float, bool]:
    """Input, rate and training flag of a call of one of ``DROPOUT_FUNCTIONS``."""
    names = ("input", "p", "training", "inplace")
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return given["input"], float(given.get("p", 0.5)), bool(given.get("training", given.get("train", True)))


def attention_rate(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """The dropout rate of a call of ``scaled_dot_product_attention``."""
    return float(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))


def call_rate(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """The rate of a call that may drop units; 0 for every other function."""
    if func in DROPOUT_FUNCTIONS:
        return dropout_arguments(args, kwargs)[1]
    return attention_rate(args, kwargs) if func is ATTENTION else 0.0


def is_normalization(module: nn.Module) -> bool:
    """Whether a module normalizes by statistics that training would move."""
    return hasattr(module, "running_mean") or hasattr(module, "track_running_stats")


def rate_attribute(module: nn.Module) -> str | None:
    """Name of the attribute that holds a module's dropout rate, where its flag alone switches it."""
    if isinstance(module, _DropoutNd):
        return "p"
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return "dropout"
    if type(module).__name__.endswith(_DROP_PATHS):
        return "p" if hasattr(module, "p") else "drop_prob"
    return None


def _rate_of(module: nn.Module) -> float:
    attribute = rate_attribute(module)
    return float(getattr(module, attribute, 0.0) or 0.0) if attribute else 0.0


class _Recorder(TorchFunctionMode):
    """Notes, in the order of execution, the modules that ran and the calls that drop units."""

    def __init__(self, stack: ModuleStack) -> None:
        super().__init__()
        self.stack = stack
        self.events: list[str | Call] = []  # modules and calls, in order
        self.calls: list[Call] = []
        self.active: list[str] = []  # modules whose calls drop units in this pass

    def enter(self, path: str) -> None:
        self.events.append(path)

    def leave(self, path: str, output: Any) -> None:
        pass

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rate = call_rate(func, args, kwargs)
        if rate > 0:
            made = Call(self.stack.current, func is ATTENTION, rate)
            self.events.append(made)
            if made not in self.calls:
                self.calls.append(made)
            if func is ATTENTION or dropout_arguments(args, kwargs)[2]:
                self.active.append(self.stack.current)
        return func(*args, **kwargs)


@contextmanager
def ordinary_layers() -> Iterator[None]:
    """Within the block torch's encoder layers run their modules one by one, not as one fused operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _record(model: nn.Module, example: Inputs) -> _Recorder:
    stack = ModuleStack()
    recorder = _Recorder(stack)
    with torch.no_grad(), torch.random.fork_rng(), ordinary_layers(), stack.follow(model, [recorder]), recorder:
        call(model, example)
    return recorder


def _record_training(model: nn.Module, example: Inputs) -> _Recorder | None:
    """The same while everything but normalization says that it trains; buffers are put back."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with eval_mode(model):
        for module in model.modules():
            module.training = not is_normalization(module)
        try:
            return _record(model, example)
        except Exception:  # a network may want labels, or more, while it trains: then this cannot be known
            return None
        finally:
            with torch.no_grad():
                for buffer, saved in buffers:
                    buffer.copy_(saved)


def check_repeatable(model: nn.Module, example: Inputs, output: Chooser | None = None) -> Tensor:
    """The prediction in eval mode, which must be the same every time.

    Args:
        model: any network; left as it was.
        example: a small batch, of one row or more.
        output: picks the prediction from what the network gives.

    Raises:
        UserError: the prediction is random in eval mode, too; the message names dropout that ignores it.
    """
    given = dict(example) if isinstance(example, Mapping) else example
    if batch_size(given) == 0:
        raise UserError("the example holds no rows; give a batch of one or more")
    found = []
    with torch.no_grad(), eval_mode(model), torch.random.fork_rng():
        for seed in (0, 1):
            torch.manual_seed(seed)
            found.append(main_output(call(model, given), output))
        first, second = found
        if first.shape == second.shape and torch.allclose(first, second, rtol=1e-3, atol=1e-5, equal_nan=True):
            return first
        active = _record(model, given).active
    where = f" (dropout at {active[0] or 'the model itself'!r} ignores it)" if active else ""
    raise UserError(
        f"the prediction of {type(model).__name__} is random in eval mode, too{where}: pass training=self.training to "
        "what draws random numbers, so that the prediction that is served is one"
    )


def find_dropout(model: nn.Module, example: Inputs, *, drop_path: bool = False) -> list[DropoutSite]:
    """The places where a network drops units, in the order in which they run.

    Args:
        model: any network; left as it was, flags, buffers and random states included.
        example: a small batch, see ``Inputs``.
        drop_path: whether stochastic depth counts as dropout.

    Returns:
        Sites with a rate above 0. Empty where the network has none.
    """
    modules = dict(model.named_modules())
    with eval_mode(model):
        evaluated = _record(model, example)
    trained = _record_training(model, example)
    found: dict[str | Call, DropoutSite] = {}
    for path, module in modules.items():
        if path not in evaluated.events or _rate_of(module) <= 0:
            continue
        if type(module).__name__.endswith(_DROP_PATHS):
            if drop_path:
                found[path] = DropoutSite(path, "drop-path", _rate_of(module))
        else:
            kind: Kind = "attention" if isinstance(module, nn.MultiheadAttention) else "module"
            found[path] = DropoutSite(path, kind, _rate_of(module))
    for made in evaluated.calls:
        if rate_attribute(modules[made.path]) is None:
            found[made] = DropoutSite(made.path, "functional", made.rate, attention=made.attention)
    for made in trained.calls if trained else ():
        if made not in found and rate_attribute(modules[made.path]) is None:
            found[made] = DropoutSite(made.path, "owner", made.rate, attention=made.attention)
    order: dict[str | Call, int] = {}
    for event in [*evaluated.events, *(trained.events if trained else [])]:
        order.setdefault(event, len(order))
    return [found[key] for key in sorted(found, key=order.__getitem__)]


def choose_sites(sites: Sequence[DropoutSite], places: str | Sequence[str], rate: float | None) -> list[DropoutSite]:
    """The sites that are to be random.

    Args:
        sites: of the network, in order.
        places: ``all``, ``first``, ``last``, or names of modules: each stands for itself and everything below it.
        rate: of all of them; their own where ``None``.

    Raises:
        UserError: a name stands for no site, or a rate is not in (0, 1).
    """
    if places == "all":
        chosen = list(sites)
    elif places in ("first", "last"):
        chosen = list(sites[:1] if places == "first" else sites[-1:])
    else:
        names = [places] if isinstance(places, str) else list(places)
        for name in names:
            if not any(_stands_for(name, site) for site in sites):
                known = ", ".join(dict.fromkeys(site.path or "the model itself" for site in sites)) or "none at all"
                raise UserError(f"places: there is no dropout at {name!r}; there is: {known}")
        chosen = [site for site in sites if any(_stands_for(name, site) for name in names)]
    if rate is not None:
        chosen = [replace(site, rate=rate, own_rate=site.rate) for site in chosen]
    for site in chosen:
        if not 0 < site.rate < 1:
            raise UserError(f"the dropout rate at {site.path!r} must be above 0 and below 1; got {site.rate:g}")
    return chosen


def _stands_for(name: str, site: DropoutSite) -> bool:
    return site.path == name or site.path.startswith(f"{name}.")
