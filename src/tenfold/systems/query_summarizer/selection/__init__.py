"""From scores to a summary: budgets, redundancy, order, and where each sentence stands in its source."""
