from .analytic.calibration import LinearCalibration
from .analytic.closed_form import closed_form_covariance, closed_form_variance, delta_method
from .analytic.moment_propagation import MomentPropagation
from .data.criteo import CriteoEncoder, load_criteo, stream_criteo
from .data.movielens import Ratings, load_movielens
from .data.synthetic_movielens import SyntheticMovieLens, synthetic_movielens
from .ensemble import ensemble_labels
from .estimator.estimator import Estimator
from .estimator.fitting import fit_estimator
from .estimator.layer_selection import LayerSelection, select_layers
from .estimator.metrics import Quality, equivalent_passes, overlap_at, quality, retention_area, retention_curve
from .joint import JointTask
from .labelling import label_to_folder, read_labels
from .labels.passes import DropoutLabels, dropout_labels
from .labels.targets import Target
from .method import ActivationUncertainty
from .network.activations import find_activations
from .network.batches import Batch
from .network.dropout import DropoutController
from .network.dropout_sites import DropoutSite, find_dropout
from .network.features import ActivationFeatures
from .serving.feature_range import FeatureRange
from .serving.loading import load
from .serving.saved_estimator import load_estimator
from .serving.uncertain_model import Scores, UncertainModel

__all__ = [
    "ActivationFeatures",
    "ActivationUncertainty",
    "Batch",
    "CriteoEncoder",
    "DropoutController",
    "DropoutLabels",
    "DropoutSite",
    "Estimator",
    "FeatureRange",
    "JointTask",
    "LayerSelection",
    "LinearCalibration",
    "MomentPropagation",
    "Quality",
    "Ratings",
    "Scores",
    "SyntheticMovieLens",
    "Target",
    "UncertainModel",
    "closed_form_covariance",
    "closed_form_variance",
    "delta_method",
    "dropout_labels",
    "ensemble_labels",
    "equivalent_passes",
    "find_activations",
    "find_dropout",
    "fit_estimator",
    "label_to_folder",
    "load",
    "load_criteo",
    "load_estimator",
    "load_movielens",
    "overlap_at",
    "quality",
    "read_labels",
    "retention_area",
    "retention_curve",
    "select_layers",
    "stream_criteo",
    "synthetic_movielens",
]
