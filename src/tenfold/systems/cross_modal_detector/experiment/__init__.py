"""The experiment: settings, recipe, comparison."""
