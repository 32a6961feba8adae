from .fitting import FitResult, Objective, Validation, fit, learning_rate_factor
from .options import TrainerOptions

__all__ = ["FitResult", "Objective", "TrainerOptions", "Validation", "fit", "learning_rate_factor"]
