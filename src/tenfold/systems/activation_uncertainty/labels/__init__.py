"""Labels of uncertainty from passes with dropout."""
