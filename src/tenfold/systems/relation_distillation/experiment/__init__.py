"""The paper's experiment: settings, recipe, comparison."""
