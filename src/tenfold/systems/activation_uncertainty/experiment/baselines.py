"""The rows of the comparison: ways to estimate dropout uncertainty, all against the same independent labels.

Compulsory are not only our own forms but whatever might do as well for less: the outputs alone, the analytic estimates
with a calibration, and Monte-Carlo dropout itself with few passes.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty.analytic.calibration import LinearCalibration
from tenfold.systems.activation_uncertainty.analytic.closed_form import (
    closed_form_covariance,
    closed_form_variance,
    delta_method,
)
from tenfold.systems.activation_uncertainty.analytic.moment_propagation import MomentPropagation
from tenfold.systems.activation_uncertainty.estimator.fitting import FittedEstimator, fit_estimator
from tenfold.systems.activation_uncertainty.estimator.layer_selection import LayerSelection, select_layers
from tenfold.systems.activation_uncertainty.estimator.metrics import bucket_aucs, equivalent_passes, quality, r2_score
from tenfold.systems.activation_uncertainty.labels.passes import DropoutLabels, dropout_labels
from tenfold.systems.activation_uncertainty.labels.targets import Target, entropy
from tenfold.systems.activation_uncertainty.main_models.build import dense_part
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty
from tenfold.systems.activation_uncertainty.network.batches import read_batches
from tenfold.systems.activation_uncertainty.network.calling import call, eval_mode, main_output
from tenfold.systems.activation_uncertainty.network.features import ActivationFeatures, read_features

MC_PASSES = (2, 5, 10, 20, 50)
Batches = Callable[[], Iterable[Any]]


class Comparison:
    """Estimates of one main model's uncertainty, measured one after the other.

    Args:
        learner: knows the main model, its dropout and taps.
        auxiliary: labels and features of held-out rows.
        test: labels and features of rows that are only measured, by independent passes.
        estimator: further arguments of ``fit_estimator``.
    """

    def __init__(
        self,
        learner: ActivationUncertainty,
        auxiliary: DropoutLabels,
        test: DropoutLabels,
        estimator: dict[str, Any],
    ) -> None:
        self.learner, self.auxiliary, self.test = learner, auxiliary, test
        self.estimator = estimator
        self.rows: dict[str, dict[str, Any]] = {}
        self.estimates: dict[str, Tensor] = {}
        self._fits: dict[tuple[int, ...], FittedEstimator] = {}

    def measure(self, name: str, estimates: Tensor, **more: Any) -> None:
        """Add a row: the quality of estimates of the test rows."""
        self.estimates[name] = estimates
        self.rows[name] = {**asdict(quality(self.test.uncertainty, estimates)), **more}

    def fit(self, features: Tensor, **changes: Any) -> FittedEstimator:
        """An estimator on features of the auxiliary rows; the split is the same for all."""
        options = {**self.estimator, **changes}
        return fit_estimator(
            features,
            self.auxiliary.spread,
            power=self.learner.target.power,
            passes=self.auxiliary.passes,
            seed=self.learner.seed,
            **options,
        )

    def fit_columns(self, columns: list[int]) -> FittedEstimator:
        """The estimator on some of the activation features; fitted once."""
        key = tuple(columns)
        if key not in self._fits:
            self._fits[key] = self.fit(_both(self.auxiliary.features, self.test.features)[0][:, columns])
        return self._fits[key]

    @torch.no_grad()
    def learned(self, name: str, fitted: FittedEstimator, test_features: Tensor) -> None:
        """Add the row of an estimator."""
        self.measure(
            name,
            fitted.estimator(test_features),
            features=test_features.shape[1],
            multiply_adds=fitted.estimator.multiply_adds,
            validation_r2=fitted.r2,
        )

    def fit_and_measure(self, name: str, features: Tensor, test_features: Tensor) -> None:
        """Add the row of an estimator on other features than the learner's."""
        self.learned(name, self.fit(features), test_features)

    def activations(self, tolerance: float) -> LayerSelection:
        """Rows of all layers, of single layers, and of the layers chosen on validation rows."""
        _, tests = _both(self.auxiliary.features, self.test.features)
        learner = self.learner
        selection = select_layers(learner.features.slices(), self.fit_columns, tolerance=tolerance)
        subsets = {"all layers": list(learner.features.blocks)}
        if len(learner.features.blocks) <= 8:
            subsets |= {f"layer {name}": [name] for name in learner.features.blocks}
        subsets["chosen layers"] = list(selection.chosen.names)
        for row, names in subsets.items():
            columns = learner.columns(names)
            self.learned(row, self.fit_columns(columns), tests[:, columns])
        return selection

    def on_off(self, auxiliary: Batches, test: Batches) -> None:
        """The row of features that say only whether units fire."""
        learner = self.learner
        features = ActivationFeatures(
            learner.model,
            learner.example,
            taps=[tap.name for tap in learner.features.taps],
            form="on-off",
            pool=learner.features.pool,
            output=learner.output,
        )
        read = [read_features(learner.model, part(), features, learner.output) for part in (auxiliary, test)]
        self.fit_and_measure("all layers, on/off", *read)

    def embeddings(self, auxiliary: Batches, test: Batches) -> None:
        """The row of the embeddings alone, where there are any."""
        learner = self.learner
        paths = [p for p, m in learner.model.named_modules() if isinstance(m, nn.Embedding)]
        if paths:
            features = ActivationFeatures(learner.model, learner.example, taps=paths, output=learner.output)
            read = [read_features(learner.model, part(), features, learner.output) for part in (auxiliary, test)]
            self.fit_and_measure("embeddings", *read)

    def outputs(self) -> None:
        """Rows of what the outputs alone tell: learnt from logits or probabilities, or by a formula."""
        target = self.learner.target
        ours, theirs = self.auxiliary.output, self.test.output
        if not target.classes:
            self.fit_and_measure("prediction only", ours[:, None], theirs[:, None])
            if target.name == "binary":
                formulas: dict[str, Callable[[Tensor], Tensor]] = {"p(1-p), calibrated": lambda o: _bernoulli(o)}
                self._formulas(formulas)
            return
        self.fit_and_measure("logits", ours, theirs)
        sorted_ours, sorted_theirs = (o.softmax(-1).sort(-1).values for o in (ours, theirs))
        self.fit_and_measure("sorted probabilities", sorted_ours, sorted_theirs)
        self.fit_and_measure("prediction only (largest probability)", sorted_ours[:, -1:], sorted_theirs[:, -1:])
        self._formulas(
            {
                "p(1-p), calibrated": lambda o: _variance_of_largest(o),
                "entropy, calibrated": lambda o: entropy(o.softmax(-1)),
            }
        )

    def _formulas(self, formulas: dict[str, Callable[[Tensor], Tensor]]) -> None:
        for name, formula in formulas.items():
            calibration = LinearCalibration.fit(self.auxiliary.uncertainty, formula(self.auxiliary.output))
            self.measure(name, calibration(formula(self.test.output)))

    def analytic(self, auxiliary: Batches, test: Batches) -> list[str]:
        """Rows of moment propagation and of the closed form, raw and calibrated; gives why one is missing."""
        notes = []
        for name, compute in (("moment propagation", self._moments), ("closed form of the last layer", self._closed)):
            try:
                ours, theirs = compute(auxiliary), compute(test)
            except UserError as error:
                notes.append(f"{name}: not there, since {error}")
                continue
            self.measure(name, theirs)
            self.measure(f"{name}, calibrated", LinearCalibration.fit(self.auxiliary.uncertainty, ours)(theirs))
        return notes

    def _moments(self, batches: Batches) -> Tensor:
        dense, inputs_of = dense_part(self.learner.model)
        prefix = next((p for p, m in self.learner.model.named_modules() if m is dense), "")
        rates = {site.path.removeprefix(f"{prefix}."): site.rate for site in self.learner.dropout.sites}
        propagation = MomentPropagation(dense, rates)
        parts = []
        for inputs, _ in read_batches(batches()):
            with torch.no_grad(), eval_mode(self.learner.model):
                found = propagation.moments(inputs_of(inputs))
            mean = found.mean if self.learner.target.classes else found.mean.flatten()
            parts.append(delta_method(self.learner.target, mean, found.variance))
        return torch.cat(parts)

    def _closed(self, batches: Batches) -> Tensor:
        return last_layer_uncertainty(self.learner, batches())

    def monte_carlo(self, test: Batches, seed: int) -> None:
        """Rows of Monte-Carlo dropout itself with few passes, each of passes of its own."""
        learner = self.learner
        for passes in MC_PASSES:
            found = dropout_labels(
                learner.model,
                test(),
                learner.dropout,
                learner.target,
                passes=passes,
                seed=seed + passes,
                output=learner.output,
            )
            self.measure(f"Monte-Carlo dropout, T = {passes}", found.uncertainty)

    def ceiling(self, again: DropoutLabels) -> float:
        """R2 between two independent sets of labels: a perfect estimate reaches about half-way from it to 1."""
        return r2_score(self.test.uncertainty, again.uncertainty)

    def equivalents(self) -> None:
        """Give every row its T-equivalent, and whether that is only a lower bound."""
        by_passes = {t: self.rows[f"Monte-Carlo dropout, T = {t}"]["r2"] for t in MC_PASSES}
        for row in self.rows.values():
            row["equivalent_passes"], row["at_least"] = equivalent_passes(row["r2"], by_passes)

    @torch.no_grad()
    def buckets(self) -> list[float | None]:
        """Area under the ROC curve of each of five buckets against the rest, all layers (paper B)."""
        features, tests = _both(self.auxiliary.features, self.test.features)
        fitted = self.fit(features, task="buckets")
        scores = fitted.estimator.bucket_probabilities(tests)
        return bucket_aucs(self.test.uncertainty, scores, fitted.estimator.bucket_edges)


def _both(ours: Tensor | None, theirs: Tensor | None) -> tuple[Tensor, Tensor]:
    if ours is None or theirs is None:
        raise UserError("these labels were made without features; label with the learner itself")
    return ours, theirs


def _bernoulli(logit: Tensor) -> Tensor:
    return logit.sigmoid() * (1 - logit.sigmoid())


def _variance_of_largest(logits: Tensor) -> Tensor:
    largest = logits.softmax(-1).amax(-1)
    return largest * (1 - largest)


@torch.no_grad()
def last_layer_uncertainty(learner: ActivationUncertainty, batches: Iterable[Any]) -> Tensor:
    """U ``(rows,)`` by the closed form, as if only the units before the last linear layer were dropped.

    Args:
        learner: knows the main model, its dropout and target.
        batches: inputs, or ``(inputs, ids)``.

    Raises:
        UserError: the network does not end in a linear layer after dropout.
    """
    model, target = learner.model, learner.target
    seen: list[tuple[nn.Linear, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda module, args, output: seen.append((module, args[0])))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    parts = []
    try:
        with eval_mode(model):
            for inputs, _ in read_batches(batches, learner.features.structure):
                seen.clear()
                output = main_output(call(model, inputs), learner.output)
                if not seen or seen[-1][1].ndim != 2 or seen[-1][0].out_features != _outputs(output, target):
                    raise UserError(f"{type(model).__name__} does not end in a linear layer")
                last, hidden = seen[-1]
                parts.append(_by_closed_form(target, output, hidden, last.weight, learner.dropout.sites[-1].rate))
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(parts)


def _outputs(output: Tensor, target: Target) -> int:
    return output.shape[-1] if target.classes else 1


def _by_closed_form(target: Target, output: Tensor, hidden: Tensor, weight: Tensor, rate: float) -> Tensor:
    if not target.classes:
        return delta_method(target, output.flatten(), closed_form_variance(hidden, weight, rate))
    return delta_method(target, output, closed_form_covariance(hidden, weight, rate))
