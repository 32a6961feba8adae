from .attacks.doorping import Doorping as Doorping
from .attacks.naive_attack import NaiveAttack as NaiveAttack
from .attacks.poisoning import Poisoner as Poisoner
from .attacks.success import attack_success as attack_success
from .attacks.success import measure_attack as measure_attack
from .attacks.triggers import Trigger as Trigger
from .attacks.triggers import random_patch as random_patch
from .attacks.triggers import white_patch as white_patch
from .auditing.audit import audit as audit
from .auditing.audit import audit_model as audit_model
from .auditing.calibrate import CalibrationPlan as CalibrationPlan
from .auditing.calibrate import calibrate as calibrate
from .auditing.calibrate import plan_like as plan_like
from .auditing.calibrate import prepared_like as prepared_like
from .auditing.page import write_audit as write_audit
from .auditing.report import AuditReport as AuditReport
from .condensers.condense import condense as condense
from .condensers.dataset_distillation import DatasetDistillationSettings as DatasetDistillationSettings
from .condensers.distribution_matching import DistributionMatchingSettings as DistributionMatchingSettings
from .condensers.experts import ExpertSettings as ExpertSettings
from .condensers.experts import train_experts as train_experts
from .condensers.gradient_matching import (
    GradientMatchingSettings as GradientMatchingSettings,
)
from .condensers.gradient_matching import (
    class_gradients as class_gradients,
)
from .condensers.gradient_matching import (
    gradient_distance as gradient_distance,
)
from .condensers.trajectory_matching import TrajectoryMatchingSettings as TrajectoryMatchingSettings
from .data.load import load_data as load_data
from .data.preprocessing import Preprocessing as Preprocessing
from .data.real_data import RealData as RealData
from .data.real_data import real_data as real_data
from .data.zca import ZCA as ZCA
from .data.zca import fit_zca as fit_zca
from .defences.activation_clustering import activation_clustering as activation_clustering
from .defences.art_adapter import to_art as to_art
from .defences.calibration import Calibration as Calibration
from .defences.calibration import load_calibration as load_calibration
from .defences.detection import Suspect as Suspect
from .defences.detection import run_defences as run_defences
from .defences.fine_pruning import fine_prune as fine_prune
from .defences.fine_pruning import fine_tune as fine_tune
from .defences.neural_cleanse import neural_cleanse as neural_cleanse
from .defences.neuron_stimulation import stimulate_neurons as stimulate_neurons
from .defences.patch_scan import PatchScan as PatchScan
from .defences.patch_scan import scan_patches as scan_patches
from .defences.range_guard import RangeGuard as RangeGuard
from .defences.range_guard import check_range as check_range
from .defences.spectral_signatures import spectral_signatures as spectral_signatures
from .defences.strip import strip as strip
from .networks.factories import make_network as make_network
from .official.read import read_official as read_official
from .official.weights import (
    read_network as read_network,
)
from .official.weights import (
    read_replay_buffer as read_replay_buffer,
)
from .official.weights import (
    read_trigger as read_trigger,
)
from .serving import load as load
from .sets.condensed_set import CondensedSet as CondensedSet
from .sets.condensed_set import TrainingRecipe as TrainingRecipe
from .sets.files import load_set as load_set
from .sets.files import save_set as save_set
from .sets.files import verify_set as verify_set
from .sets.kind import SetKind as SetKind
from .sets.kind import kind_of as kind_of
from .training.ensembles import Ensemble as Ensemble
from .training.ensembles import train_together as train_together
from .training.quality import evaluate_set as evaluate_set
from .training.quality import ranking_score as ranking_score
from .training.quality import train_on as train_on
from .training.siamese_augmentation import (
    apply_augmentation as apply_augmentation,
)
from .training.siamese_augmentation import (
    draw_augmentation as draw_augmentation,
)
