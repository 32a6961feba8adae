"""When to leave: exit policies, the thresholds that make them, and what they are judged by."""
