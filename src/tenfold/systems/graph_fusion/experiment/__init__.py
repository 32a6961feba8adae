"""The experiment: settings, arms, comparison, delivery."""
