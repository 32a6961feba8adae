"""Dropout uncertainty from activation strength (Yu et al., arXiv 2110.06435; Chen et al., WSDM 2021).


    label    T passes with dropout over held-out inputs:  U(x) = spread of the outputs
    read     one pass without dropout:                    f(x) = how strongly each hidden unit fires
    fit      a small network g:                           g(f(x)) -> U(x)
    serve    one pass:                                    y = model(x),  U = g(f(x)), a by-product

Monte-Carlo dropout pays T passes for every input that is served; here they are paid once, for a few thousand inputs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty.estimator.estimator import Loss
from tenfold.systems.activation_uncertainty.estimator.fitting import FittedEstimator, Task, fit_estimator
from tenfold.systems.activation_uncertainty.estimator.layer_selection import LayerSelection, select_layers
from tenfold.systems.activation_uncertainty.estimator.metrics import Quality, quality
from tenfold.systems.activation_uncertainty.labels.passes import DropoutLabels, dropout_labels
from tenfold.systems.activation_uncertainty.labels.targets import Target, TargetName, guess_target
from tenfold.systems.activation_uncertainty.network.batches import Parts
from tenfold.systems.activation_uncertainty.network.calling import Chooser, Inputs
from tenfold.systems.activation_uncertainty.network.dropout import DropoutController
from tenfold.systems.activation_uncertainty.network.dropout_sites import check_repeatable
from tenfold.systems.activation_uncertainty.network.features import ActivationFeatures, Form, Pool
from tenfold.systems.activation_uncertainty.network.fingerprint import fingerprint
from tenfold.systems.activation_uncertainty.serving.feature_range import FeatureRange
from tenfold.systems.activation_uncertainty.serving.saved_estimator import (
    EstimatorManifest,
    EstimatorSettings,
    save_estimator,
)
from tenfold.systems.activation_uncertainty.serving.uncertain_model import UncertainModel


@dataclass(frozen=True)
class _Fit:
    """What ``ActivationUncertainty.fit`` found."""

    fitted: FittedEstimator
    features: ActivationFeatures
    feature_range: FeatureRange
    selection: LayerSelection | None
    passes: int


class ActivationUncertainty:
    """Learns to tell, from one pass, how far dropout would move a network's prediction.

    Args:
        model: any trained network. It is never changed.
        example: a small batch, see ``Inputs``.
        target: what uncertainty is, see ``labels.targets``; by the shape of the
            output where ``auto``.
        taps: which activations are read, see
            ``ActivationFeatures``.
        form: ``value``, ``on-off`` or ``both``.
        pool: ``auto``, ``class-token`` or ``tokens``.
        extras: ``embeddings`` and ``logits`` as further features.
        places: which of the network's dropout is random, see
            ``DropoutController``.
        rate: of all of it; its own where ``None``.
        add: modules after which units are dropped although the network has no dropout there.
        drop_path: whether stochastic depth counts as dropout.
        dropout: a controller of one's own, instead of the four arguments before.
        output: picks the prediction from what the network gives; transformers' ``logits`` are found.
        passes: T of the labels.
        seed: of masks and fits.

    Raises:
        UserError: the network has no dropout and none is added, a name stands for nothing, or its prediction is random
            in eval mode, too.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
        >>> held_out = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
        >>> learner = ActivationUncertainty(net, held_out[:2], passes=20).fit([held_out])
        >>> probability, uncertainty = learner.serve()(held_out[:5])
    """

    def __init__(
        self,
        model: nn.Module,
        example: Inputs,
        *,
        target: TargetName | str = "auto",
        taps: str | Sequence[str] = "auto",
        form: Form = "value",
        pool: Pool = "auto",
        extras: Sequence[str] = (),
        places: str | Sequence[str] = "all",
        rate: float | None = None,
        add: str | Sequence[str] = (),
        drop_path: bool = False,
        dropout: DropoutController | None = None,
        output: Chooser | None = None,
        passes: int = 100,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.example = example
        self.output = output
        self.passes = passes
        self.seed = seed
        first = check_repeatable(model, example, output)
        self.target = Target(guess_target(first) if target == "auto" else target)  # type: ignore[arg-type]
        self.target.check(first)
        self.dropout = dropout or DropoutController(
            model, example, places=places, rate=rate, add=add, drop_path=drop_path
        )
        self.features = ActivationFeatures(
            model, example, taps=taps, form=form, pool=pool, extras=extras, output=output
        )
        self._fit: _Fit | None = None

    def label(
        self, batches: Iterable[Any], *, passes: int | None = None, seed: int | None = None, **options: Any
    ) -> DropoutLabels:
        """Labels and features of inputs, which should not have trained the model.

        Args:
            batches: inputs, built as the example is; or ``Batch(inputs, ids)``; or what ``parts`` explains.
            passes: T; that of the learner where ``None``.
            seed: of the masks; labels for a test need another one than those that were learnt.
            options: of ``label_batches``: ``how``, ``memory_limit_mb``, ``per_sample``,
                ``prefix``, ``parts``.
        """
        return dropout_labels(
            self.model,
            batches,
            self.dropout,
            self.target,
            passes=self.passes if passes is None else passes,
            seed=self.seed if seed is None else seed,
            features=self.features,
            output=self.output,
            **options,
        )

    def fit(
        self,
        data: DropoutLabels | Iterable[Any],
        *,
        loss: Loss = "auto",
        task: Task = "regression",
        hidden: tuple[int, ...] = (100, 50),
        layers: Sequence[str] | None = None,
        select: bool = False,
        tolerance: float = 0.01,
        parts: Parts | None = None,
        **options: Any,
    ) -> "ActivationUncertainty":
        """Fit the estimator post hoc.

        Args:
            data: labels of held-out inputs, or the inputs themselves.
            loss: see ``estimator.fitting``.
            task: ``regression`` or ``buckets``.
            hidden: widths of the estimator.
            layers: names of the taps to read; all where ``None``.
            select: keep the cheapest subset of layers that is almost as good as all.
            tolerance: how far below all layers' R2 it may be, on validation rows.
            parts: what the parts of a batch are, see ``network.batches``.
            options: further ones of ``fit_estimator``.

        Returns:
            Itself.

        Raises:
            UserError: too few rows, labels that are all the same, NaN.
        """
        labels = data if isinstance(data, DropoutLabels) else self.label(data, parts=parts)
        if labels.features is None:
            raise UserError("these labels were made without features; label with the learner itself")

        features = labels.features

        def fit(columns: list[int]) -> FittedEstimator:
            return fit_estimator(
                features[:, columns],
                labels.spread,
                power=self.target.power,
                passes=labels.passes,
                loss=loss,
                task=task,
                hidden=hidden,
                seed=self.seed,
                **options,
            )

        slices = self.features.slices()
        if unknown := [name for name in layers or () if name not in slices]:
            raise UserError(f"layers: {unknown[0]!r} is not tapped; there are: {', '.join(slices)}")
        names: Sequence[str] = list(layers or slices)
        selection = (
            select_layers({name: slices[name] for name in slices if name in names}, fit, tolerance=tolerance)
            if select
            else None
        )
        if selection is not None:
            names = selection.chosen.names
        chosen = self.features.only(names)
        columns = self.columns(names)
        self._fit = _Fit(
            fit(columns),
            chosen,
            FeatureRange(len(columns)).fit(features[:, columns]),
            selection,
            labels.passes,
        )
        return self

    def columns(self, names: Iterable[str]) -> list[int]:
        """Columns of the features of some taps, in order."""
        wanted = set(names)
        slices = self.features.slices()
        return [c for name in slices if name in wanted for c in range(self.features.width)[slices[name]]]

    @property
    def result(self) -> FittedEstimator:
        """The fitted estimator and how it came about."""
        return self._fitted.fitted

    @property
    def selection(self) -> LayerSelection | None:
        """The subsets of layers that were tried, where ``fit`` selected."""
        return self._fitted.selection

    @property
    def _fitted(self) -> _Fit:
        if self._fit is None:
            raise UserError("the estimator is not fitted yet: call fit first")
        return self._fit

    @torch.no_grad()
    def estimate(self, labels: DropoutLabels) -> Tensor:
        """U ``(rows,)`` from the features that came with labels."""
        if labels.features is None:
            raise UserError("these labels were made without features; label with the learner itself")
        return self.result.estimator(labels.features[:, self.columns(self._fitted.features.blocks)])

    def evaluate(
        self, data: DropoutLabels | Iterable[Any], *, passes: int = 100, parts: Parts | None = None
    ) -> Quality:
        """How good the estimates are on inputs that neither trained the model nor the estimator.

        Args:
            data: labels made with another seed, or the inputs themselves.
            passes: T of their labels.
            parts: what the parts of a batch are, see ``network.batches``.
        """
        labels = (
            data
            if isinstance(data, DropoutLabels)
            else self.label(data, passes=passes, seed=self.seed + 1, parts=parts)
        )
        return quality(labels.uncertainty, self.estimate(labels))

    def serve(self) -> UncertainModel:
        """The model with its estimator: ``(prediction, uncertainty)`` from one pass."""
        found = self._fitted
        return UncertainModel(
            self.model, found.features, found.fitted.estimator, self.target, self.output, found.feature_range
        )

    def save(self, folder: str | Path, metrics: dict[str, float] | None = None, labels: str = "dropout") -> None:
        """Write the estimator, which is loaded with
        ``load_estimator`` onto the same main model.

        Args:
            folder: made if need be.
            metrics: numbers to keep with it.
            labels: where the labels come from, ``dropout`` or ``ensemble``.
        """
        found = self._fitted
        manifest = EstimatorManifest(
            features=found.features.to_dict(),
            estimator=EstimatorSettings(**found.fitted.estimator.settings),
            target=self.target.name,
            passes=found.passes,
            labels=labels,
            dropout=list(self.dropout.sites),
            inference_only=self.dropout.inference_only,
            fingerprint=fingerprint(self.model, self.example, self.output),
            rows={"train": found.fitted.train_rows, "validation": found.fitted.validation_rows},
            metrics={"validation_r2": found.fitted.r2, **(metrics or {})},
        )
        save_estimator(folder, self.serve(), manifest)
