"""Optimizers that hold state for the chosen entries only: ``SparseAdamW`` and ``SparseSGD``.


    backward pass:  as soon as a parameter's gradient is complete
                        packed += gradient.view(-1)[idx]        (k_t numbers)
                        parameter.grad = None                   dense gradients die one by one
    step:           x = theta[idx];  x = update(x, packed, state);  theta[idx] = x;  packed = None

Masking the gradients of an ordinary AdamW instead does not freeze anything: weight decay and old moments move the
"frozen" entries. Here an entry outside the mask is never written.

Unlike torch's, a step uses its gradients up, packed and dense ones: ``model.zero_grad()`` and
``optimizer.zero_grad()`` mean the same afterwards.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from tenfold.errors import UserError
from tenfold.parallel import world_size
from tenfold.sparse.masks import Mask
from tenfold.sparse.parameters import check_patterns, index_dtype, matches, put, take, unique_parameters


class SparseOptimizer(Optimizer):
    """What the sparse optimizers share: packing, clipping, several processes, freezing. Use one of its subclasses.

    Args:
        model: whose parameters are trained. Parameters that are neither in the mask nor dense get
            ``requires_grad = False``, which also ends the backward pass below the first trained layer;
            ``release`` gives it back.
        mask: the chosen entries, or ``None`` for dense parameters alone.
        defaults: settings of the parameter groups.
        dense: patterns of names that are trained whole, such as a new head.
        dense_settings: settings of the group of dense parameters where they differ, such as ``{"lr": 1e-3}``.
        decay_towards: what weight decay pulls the chosen entries to: ``zero``, or ``start`` (their values now, L2-SP).
        max_norm: largest norm of the gradient over all trained entries, or ``None``. Clipping from outside sees no
            gradients of chosen entries.
        mode: ``packed``, or ``masked``, which leaves dense gradients, zero outside the mask, for float16 with a
            GradScaler.

    Raises:
        UserError: mask and model do not fit, a pattern fits nothing, a parameter is both in the mask and dense, or
            nothing is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        mask: Mask | None,
        defaults: dict[str, Any],
        *,
        dense: Sequence[str],
        dense_settings: dict[str, Any] | None,
        decay_towards: Literal["zero", "start"],
        max_norm: float | None,
        mode: Literal["packed", "masked"],
    ) -> None:
        if decay_towards not in ("zero", "start") or mode not in ("packed", "masked"):
            raise UserError(f"decay_towards is zero or start, mode packed or masked; got {decay_towards!r}, {mode!r}")
        if max_norm is not None and not max_norm > 0:
            raise UserError(f"max_norm must be positive; got {max_norm}")
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
        super().__init__(groups, defaults)
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
        super().load_state_dict(state_dict)

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
        self._share(gradients)
        if self.max_norm is not None and gradients:
            norm = torch.nn.utils.get_total_norm(list(gradients.values()))
            factor = torch.clamp(self.max_norm / (norm + 1e-6), max=1.0)
            for gradient in gradients.values():
                gradient.mul_(factor.to(gradient.device))
        for group in self.param_groups:
            self._step_group(group, gradients)
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

    def _share(self, gradients: dict[nn.Parameter, Tensor]) -> None:
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

    def _step_group(self, group: dict[str, Any], gradients: dict[nn.Parameter, Tensor]) -> None:
        values, grads, starts, owners = [], [], [], []
        for parameter in group["params"]:
            if parameter in gradients:
                index = self._index.get(parameter)
                values.append(parameter if index is None else take(parameter, index))
                grads.append(gradients[parameter])
                starts.append(self._start.get(parameter))
                owners.append(parameter)
        if not owners:
            return
        self._update(group, owners, values, grads, starts)
        for parameter, value in zip(owners, values, strict=True):
            index = self._index.get(parameter)
            if index is not None:
                put(parameter, index, value)

    def _update(
        self,
        group: dict[str, Any],
        owners: list[nn.Parameter],
        values: list[Tensor],
        gradients: list[Tensor],
        starts: list[Tensor | None],
    ) -> None:
        raise NotImplementedError


class SparseAdamW(SparseOptimizer):
    """AdamW on chosen entries; with all entries chosen, bit for bit ``torch.optim.AdamW(foreach=False)``.

    A real ``torch.optim.Optimizer``: parameter groups (the chosen entries, then the dense parameters), schedulers,
    ``state_dict``. Under several processes it averages the packed gradients itself: do not wrap the model in
    ``DistributedDataParallel``. With transformers' Trainer pass it as ``optimizers=(optimizer, scheduler)``.

    Args:
        model: see ``SparseOptimizer``.
        mask: see there.
        lr: learning rate.
        betas: decay of the moments.
        eps: added to the root of the second moment.
        weight_decay: of chosen entries and dense parameters.
        dense: see there.
        dense_settings: see there.
        decay_towards: see there.
        max_norm: see there.
        mode: see there.
    """

    def __init__(
        self,
        model: nn.Module,
        mask: Mask | None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        dense: Sequence[str] = (),
        dense_settings: dict[str, Any] | None = None,
        decay_towards: Literal["zero", "start"] = "zero",
        max_norm: float | None = None,
        mode: Literal["packed", "masked"] = "packed",
    ) -> None:
        if not (lr >= 0 and eps >= 0 and weight_decay >= 0 and all(0 <= beta < 1 for beta in betas)):
            raise UserError(
                f"lr, eps and weight_decay must not be negative and betas lie in [0, 1); got {lr}, {eps}, "
                f"{weight_decay}, {betas}"
            )
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            model,
            mask,
            defaults,
            dense=dense,
            dense_settings=dense_settings,
            decay_towards=decay_towards,
            max_norm=max_norm,
            mode=mode,
        )

    def _update(
        self,
        group: dict[str, Any],
        owners: list[nn.Parameter],
        values: list[Tensor],
        gradients: list[Tensor],
        starts: list[Tensor | None],
    ) -> None:
        decay = group["weight_decay"]
        towards_start = starts[0] is not None
        states = []
        for parameter, value, start in zip(owners, values, starts, strict=True):
            state = self.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(value, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(value, memory_format=torch.preserve_format)
            states.append(state)
            if start is not None and decay:
                value.add_(start - value, alpha=group["lr"] * decay)
        adamw(
            values,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=False,
            capturable=False,
            differentiable=False,
            fused=False,
            grad_scale=None,
            found_inf=None,
            has_complex=False,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0 if towards_start else decay,
            eps=group["eps"],
            maximize=False,
        )


class SparseSGD(SparseOptimizer):
    """Stochastic gradient descent with momentum on chosen entries; with all chosen, bit for bit ``torch.optim.SGD``.

    Args:
        model: see ``SparseOptimizer``.
        mask: see there.
        lr: learning rate.
        momentum: of the chosen entries.
        weight_decay: added to the gradient, as in torch.
        nesterov: Nesterov's form of momentum.
        dense: see there.
        dense_settings: see there.
        decay_towards: see there.
        max_norm: see there.
        mode: see there.
    """

    def __init__(
        self,
        model: nn.Module,
        mask: Mask | None,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        dense: Sequence[str] = (),
        dense_settings: dict[str, Any] | None = None,
        decay_towards: Literal["zero", "start"] = "zero",
        max_norm: float | None = None,
        mode: Literal["packed", "masked"] = "packed",
    ) -> None:
        if not (lr >= 0 and momentum >= 0 and weight_decay >= 0) or (nesterov and not momentum):
            raise UserError(
                f"lr, momentum and weight_decay must not be negative, and nesterov needs momentum; got {lr}, "
                f"{momentum}, {weight_decay}"
            )
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(
            model,
            mask,
            defaults,
            dense=dense,
            dense_settings=dense_settings,
            decay_towards=decay_towards,
            max_norm=max_norm,
            mode=mode,
        )

    def _update(
        self,
        group: dict[str, Any],
        owners: list[nn.Parameter],
        values: list[Tensor],
        gradients: list[Tensor],
        starts: list[Tensor | None],
    ) -> None:
        decay = group["weight_decay"]
        if starts[0] is not None and decay:
            gradients = [
                gradient.add(value - start, alpha=decay)
                for gradient, value, start in zip(gradients, values, starts, strict=True)
                if start is not None
            ]
            decay = 0.0
        buffers: list[Tensor | None] = [self.state[parameter].get("momentum_buffer") for parameter in owners]
        sgd(
            values,
            gradients,
            buffers,
            foreach=False,
            fused=False,
            grad_scale=None,
            found_inf=None,
            weight_decay=decay,
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
            has_sparse_grad=False,
        )
        if group["momentum"]:
            for parameter, buffer in zip(owners, buffers, strict=True):
                self.state[parameter]["momentum_buffer"] = buffer


def trained_parameters(optimizer: SparseOptimizer) -> Iterable[nn.Parameter]:
    """Parameters of which the optimizer trains at least an entry."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
