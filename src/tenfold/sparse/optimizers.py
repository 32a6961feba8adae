"""Any of torch's optimizers on the chosen entries of a model: ``SparseAdamW``, ``SparseSGD``, ``SparseOptimizer``.


    backward pass:  as soon as a parameter's gradient is complete
                        packed += gradient.view(-1)[idx]        (k_t numbers)
                        parameter.grad = None                   dense gradients die one by one
    step:           x = theta[idx];  x = rule(x, packed, state);  theta[idx] = x;  packed = None

The rule is torch's own optimizer, which sees nothing but the chosen entries and so holds state for those only. Masking
the gradients of an ordinary AdamW instead does not freeze anything: weight decay and old moments move the "frozen"
entries. Here an entry outside the mask is never written.

Unlike torch's, a step uses its gradients up, packed and dense ones: ``model.zero_grad()`` and
``optimizer.zero_grad()`` mean the same afterwards.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypedDict, Unpack

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold.errors import UserError
from tenfold.sparse.masks import Mask
from tenfold.sparse.parameters import check_patterns, index_dtype, matches, put, take, unique_parameters
from tenfold.training.parallel import world_size


class SparseSettings(TypedDict, total=False):
    """What every sparse optimizer takes beside its rule's own settings; see ``SparseOptimizer``."""

    dense: Sequence[str]
    dense_settings: dict[str, Any] | None
    decay_towards: Literal["zero", "start"]
    max_norm: float | None
    mode: Literal["packed", "masked"]


class SparseOptimizer(Optimizer):
    """An optimizer of torch's on chosen entries; with all entries chosen, bit for bit that optimizer.

    A real ``torch.optim.Optimizer``: parameter groups (the chosen entries, then the dense parameters), schedulers,
    ``state_dict``, closures, gradient accumulation. Under several processes it averages the packed gradients itself: do
    not wrap the model in ``DistributedDataParallel``. With transformers' Trainer pass it as ``optimizers=(optimizer,
    scheduler)`` and set ``max_grad_norm=0``, with ``max_norm`` here in its place.

    Args:
        model: whose parameters are trained. Parameters that are neither in the mask nor dense get
            ``requires_grad = False``, which also ends the backward pass below the first trained layer;
            ``release`` gives it back.
        mask: the chosen entries, or ``None`` for dense parameters alone.
        rule: class of the optimizer, one that treats every entry by itself, such as ``torch.optim.RMSprop``. Adafactor,
            Muon and LBFGS, which look at a whole matrix or at all parameters together, are none.
        dense: patterns of names that are trained whole, such as a new head.
        dense_settings: settings of the group of dense parameters where they differ, such as ``{"lr": 1e-3}``.
        decay_towards: what weight decay pulls the chosen entries to: ``zero``, or ``start`` (their values now, L2-SP).
        max_norm: largest norm of the gradient over all trained entries, or ``None``. Clipping from outside sees no
            gradients of chosen entries.
        mode: ``packed``, or ``masked``, which leaves dense gradients, zero outside the mask, for float16 with a
            GradScaler.
        settings: of the rule, such as ``lr``.

    Raises:
        UserError: mask and model do not fit, a pattern fits nothing, a parameter is both in the mask and dense, nothing
            is trained, or the rule refuses its settings.

    Example:
        >>> optimizer = SparseOptimizer(model, mask, torch.optim.RMSprop, lr=1e-3, momentum=0.9)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        mask: Mask | None,
        rule: type[Optimizer] = torch.optim.AdamW,
        *,
        dense: Sequence[str] = (),
        dense_settings: dict[str, Any] | None = None,
        decay_towards: Literal["zero", "start"] = "zero",
        max_norm: float | None = None,
        mode: Literal["packed", "masked"] = "packed",
        **settings: Any,
    ) -> None:
        if decay_towards not in ("zero", "start") or mode not in ("packed", "masked"):
            raise UserError(f"decay_towards is zero or start, mode packed or masked; got {decay_towards!r}, {mode!r}")
        if max_norm is not None and not max_norm > 0:
            raise UserError(f"max_norm must be positive; got {max_norm}")
        if rule.__name__ in _WHOLE_MATRICES:
            raise UserError(f"{rule.__name__} does not treat every entry by itself: choose another rule, such as AdamW")
        check_patterns(model, dense, "dense")
        named = mask.check(model) if mask is not None else {}
        whole = {name: value for name, value in unique_parameters(model).items() if matches(name, dense)}
        both = [name for name, value in named.items() if any(value is other for other in whole.values())]
        if both:
            raise UserError(f"{both[0]!r} is in the mask and trained whole: leave it out of one of the two")
        if not named and not whole:
            raise UserError("there is nothing to train: no mask and no dense parameters")
        groups: list[dict[str, Any]] = []
        if mask is not None:
            groups.append({"params": list(named.values()), "mask": mask.sha256})
        if whole:
            groups.append({"params": list(whole.values()), "mask": None, **(dense_settings or {})})
        try:
            self.rule = rule(groups, **settings)
        except (TypeError, ValueError) as error:
            raise UserError(f"{rule.__name__} refuses its settings: {' '.join(str(error).split())}") from error
        super().__init__(groups, self.rule.defaults)
        self._share_state()
        self.mode, self.max_norm, self.decay_towards = mode, max_norm, decay_towards
        self._index: dict[nn.Parameter, Tensor] = {}
        self._start: dict[nn.Parameter, Tensor] = {}
        self._packed: dict[nn.Parameter, Tensor] = {}
        self._hooks: list[Any] = []
        trained = {id(value) for value in (*named.values(), *whole.values())}
        self._frozen = [value for value in model.parameters() if id(value) not in trained and value.requires_grad]
        self._thawed = [value for value in (*named.values(), *whole.values()) if not value.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        for parameter in self._thawed:
            parameter.requires_grad_(True)
        if mask is not None:
            self._take_mask(mask, named)

    def _share_state(self) -> None:
        """The rule and this optimizer have one state and one list of groups: schedulers change both."""
        self.state, self.param_groups = self.rule.state, self.rule.param_groups

    def _take_mask(self, mask: Mask, named: dict[str, nn.Parameter]) -> None:
        for name, parameter in named.items():
            self._index[parameter] = mask.entries[name].to(parameter.device, index_dtype(parameter.numel()))
            if self.decay_towards == "start":
                self._start[parameter] = take(parameter, self._index[parameter])
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._gather))

    def _gather(self, parameter: Tensor) -> None:
        """A parameter's gradient of this backward pass is complete: keep what was chosen."""
        gradient = parameter.grad
        assert gradient is not None and isinstance(parameter, nn.Parameter)
        index = self._index[parameter]
        chosen = take(gradient, index)
        if self.mode == "masked":
            gradient.zero_()
            put(gradient, index, chosen)
            return
        parameter.grad = None
        if parameter in self._packed:
            self._packed[parameter] += chosen
        else:
            self._packed[parameter] = chosen

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, packed ones too."""
        super().zero_grad(set_to_none)
        self._packed.clear()

    def release(self) -> None:
        """Take the hooks off the model and give ``requires_grad`` back; the optimizer is of no use afterwards."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._packed.clear()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        for parameter in self._thawed:
            parameter.requires_grad_(False)

    def state_bytes(self) -> int:
        """Bytes of everything that is held beside the model: moments, positions, start values."""
        held: list[Tensor] = [*self._index.values(), *self._start.values()]
        held += [value for state in self.state.values() for value in state.values() if isinstance(value, Tensor)]
        return sum(value.numel() * value.element_size() for value in held)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another optimizer with the same mask stopped.

        Raises:
            UserError: it had another mask.
        """
        theirs = [group.get("mask") for group in state_dict["param_groups"]]
        if theirs != [group["mask"] for group in self.param_groups]:
            raise UserError("the optimizer's state belongs to another mask")
        self.rule.load_state_dict(state_dict)
        self._share_state()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the chosen entries and the dense parameters; uses the gradients up.

        Args:
            closure: computes the loss and its gradients anew.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = self._gradients()
        self._average(gradients)
        if self.max_norm is not None and gradients:
            norm = torch.nn.utils.get_total_norm(list(gradients.values()))
            factor = torch.clamp(self.max_norm / (norm + 1e-6), max=1.0)
            for gradient in gradients.values():
                gradient.mul_(factor.to(gradient.device))
        with self._chosen_alone(gradients):
            self.rule.step()
        self.zero_grad()
        return loss

    def _gradients(self) -> dict[nn.Parameter, Tensor]:
        """What each trained parameter's update goes by: packed for chosen entries, whole for dense parameters."""
        found: dict[nn.Parameter, Tensor] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self._packed:
                    found[parameter] = self._packed[parameter]
                elif parameter.grad is not None:
                    index = self._index.get(parameter)
                    found[parameter] = parameter.grad if index is None else take(parameter.grad, index)
        return found

    def _average(self, gradients: dict[nn.Parameter, Tensor]) -> None:
        """Mean over all processes, in one message of as many numbers as are trained."""
        if world_size() == 1:
            return
        for group in self.param_groups:
            for parameter in group["params"]:  # a process whose batch does not reach a parameter counts as zero
                if parameter not in gradients:
                    index = self._index.get(parameter)
                    like = parameter if index is None else take(parameter, index)
                    gradients[parameter] = torch.zeros_like(like)
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                by_dtype.setdefault(gradients[parameter].dtype, []).append(parameter)
        for parameters in by_dtype.values():
            message = torch.cat([gradients[parameter].flatten() for parameter in parameters])
            dist.all_reduce(message)
            message /= world_size()
            parts = message.split([gradients[parameter].numel() for parameter in parameters])
            for parameter, part in zip(parameters, parts, strict=True):
                gradients[parameter] = part.view_as(gradients[parameter])

    @contextmanager
    def _chosen_alone(self, gradients: dict[nn.Parameter, Tensor]) -> Iterator[None]:
        """Within it, each parameter is the vector of its chosen entries, with their gradients; then they go back.

        With ``decay_towards="start"`` it is their distance from the start instead: no rule that treats entries by
        themselves knows where zero is, but for its weight decay.
        """
        whole: dict[nn.Parameter, Tensor] = {}
        try:
            for parameter, gradient in gradients.items():
                index = self._index.get(parameter)
                if index is not None:
                    parameter.grad = None
                    whole[parameter] = parameter.data
                    chosen = take(parameter, index)
                    parameter.data = chosen - self._start[parameter] if parameter in self._start else chosen
                parameter.grad = gradient
            yield
        finally:
            for parameter, data in whole.items():
                chosen = parameter.data
                parameter.grad = None
                parameter.data = data
                start = self._start.get(parameter)
                put(parameter, self._index[parameter], chosen if start is None else chosen + start)
            self._packed.clear()


_WHOLE_MATRICES = ("Adafactor", "Muon", "LBFGS", "SparseAdam")


class SparseAdamW(SparseOptimizer):
    """AdamW on chosen entries; with all entries chosen, bit for bit ``torch.optim.AdamW``.

    Args:
        model: see ``SparseOptimizer``.
        mask: see there.
        lr: learning rate.
        betas: decay of the moments.
        eps: added to the root of the second moment.
        weight_decay: of chosen entries and dense parameters.
        sparse: ``dense``, ``dense_settings``, ``decay_towards``, ``max_norm``, ``mode``; see there.
    """

    def __init__(
        self,
        model: nn.Module,
        mask: Mask | None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **sparse: Unpack[SparseSettings],
    ) -> None:
        rule = torch.optim.AdamW
        super().__init__(model, mask, rule, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **sparse)


class SparseSGD(SparseOptimizer):
    """Stochastic gradient descent with momentum on chosen entries; with all chosen, bit for bit ``torch.optim.SGD``.

    Args:
        model: see ``SparseOptimizer``.
        mask: see there.
        lr: learning rate.
        momentum: of the chosen entries.
        weight_decay: added to the gradient, as in torch.
        nesterov: Nesterov's form of momentum.
        sparse: ``dense``, ``dense_settings``, ``decay_towards``, ``max_norm``, ``mode``; see there.
    """

    def __init__(
        self,
        model: nn.Module,
        mask: Mask | None,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **sparse: Unpack[SparseSettings],
    ) -> None:
        own = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(model, mask, torch.optim.SGD, **own, **sparse)
