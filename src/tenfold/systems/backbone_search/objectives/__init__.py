"""What a candidate costs, and the limits on it."""
