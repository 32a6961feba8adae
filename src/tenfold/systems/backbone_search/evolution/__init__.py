"""Multi-objective evolution on Optuna: ranking, sampler, storages, workers, archive."""
