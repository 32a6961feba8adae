"""Where a network drops units: found by running it, so that functional and attention dropout are seen, too.

Five kinds of sites::

    module      nn.Dropout and its kin, recurrent layers with dropout between them
    attention   nn.MultiheadAttention
    functional  a module whose forward calls F.dropout(x, p, self.training)
    owner       a module that asks for dropout only while it trains: F.dropout(x, p if self.training else 0),
                F.scaled_dot_product_attention(..., dropout_p=p if self.training else 0)
    drop-path   stochastic depth: residual branches dropped whole, per sample; only on request

The first two are switched by their flag and rate. A functional site is switched by intercepting its calls, which
leaves every flag alone. An owner's flag is set, but not its children's: a normalization layer below it stays frozen.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty.network.calling import Inputs, call, eval_mode
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
    """

    path: str
    kind: Kind
    rate: float


def dropout_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, float, bool]:
    """Input, rate and training flag of a call of one of ``DROPOUT_FUNCTIONS``."""
    names = ("input", "p", "training", "inplace")
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return given["input"], float(given.get("p", 0.5)), bool(given.get("training", given.get("train", True)))


def attention_rate(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """The dropout rate of a call of ``scaled_dot_product_attention``."""
    return float(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))


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
        self.entered: list[str] = []
        self.calls: dict[str, float] = {}  # innermost module -> rate, in order

    def enter(self, path: str) -> None:
        self.entered.append(path)

    def leave(self, path: str, output: Any) -> None:
        pass

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rate = 0.0
        if func in DROPOUT_FUNCTIONS:
            rate = dropout_arguments(args, kwargs)[1]
        elif func is ATTENTION:
            rate = attention_rate(args, kwargs)
        if rate > 0 and self.stack.current not in self.calls:
            self.calls[self.stack.current] = rate
            self.entered.append(self.stack.current)
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
    found: dict[str, DropoutSite] = {}
    for path, module in modules.items():
        if path not in evaluated.entered or _rate_of(module) <= 0:
            continue
        if type(module).__name__.endswith(_DROP_PATHS):
            if drop_path:
                found[path] = DropoutSite(path, "drop-path", _rate_of(module))
        else:
            kind: Kind = "attention" if isinstance(module, nn.MultiheadAttention) else "module"
            found[path] = DropoutSite(path, kind, _rate_of(module))
    for path, rate in evaluated.calls.items():
        if path not in found and not isinstance(modules[path], _DropoutNd):
            found[path] = DropoutSite(path, "functional", rate)
    for path, rate in (trained.calls if trained else {}).items():
        if path not in found and rate_attribute(modules[path]) is None:
            found[path] = DropoutSite(path, "owner", rate)
    order = {path: n for n, path in reversed([*enumerate([*evaluated.entered, *(trained.entered if trained else [])])])}
    return sorted(found.values(), key=lambda site: order[site.path])


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
                known = ", ".join(site.path or "the model itself" for site in sites) or "none at all"
                raise UserError(f"places: there is no dropout at {name!r}; there is: {known}")
        chosen = [site for site in sites if any(_stands_for(name, site) for name in names)]
    chosen = [DropoutSite(site.path, site.kind, site.rate if rate is None else rate) for site in chosen]
    for site in chosen:
        if not 0 < site.rate < 1:
            raise UserError(f"the dropout rate at {site.path!r} must be above 0 and below 1; got {site.rate:g}")
    return chosen


def _stands_for(name: str, site: DropoutSite) -> bool:
    return site.path == name or site.path.startswith(f"{name}.")
