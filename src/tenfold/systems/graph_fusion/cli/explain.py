"""Show which training facts speak for an answer."""

import json
from typing import Literal

from tenfold.systems.graph_fusion.serve.student import Student


def explain(run: str, entity: str, relation: str, answer: str, *, direction: Literal["tail", "head"] = "tail") -> str:
    """Show which training facts speak for an answer, with ids.

    Args:
        run: folder of the run, or of one of its students.
        entity: id or name of the given entity.
        relation: id or text.
        answer: id or name of the answer.
        direction: which end is asked for.
    """
    found = Student.load(run).explain(entity, relation, answer, direction=direction)
    return json.dumps(found, indent=1, ensure_ascii=False)
