"""The audit of a set or a model: scan, confirmation, repair, verdict; and what calibrates it."""
