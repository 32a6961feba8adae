"""How teacher and student are started and trained."""
