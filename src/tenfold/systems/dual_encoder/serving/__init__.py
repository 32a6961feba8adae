"""A small service: pick an index, ask a question or a checklist, see ranked pictures."""
