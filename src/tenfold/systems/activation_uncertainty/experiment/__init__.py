"""The experiment: settings, recipe, baselines, comparison."""
