"""``labels``: sentence labels for a JSONL file of queries, documents and summaries."""

import json
from typing import Any, Literal

from tenfold.files import refuse_overwriting, write_atomically
from tenfold.systems.query_summarizer.labels.oracle import hard_labels, single_reference_oracle, soft_labels
from tenfold.systems.query_summarizer.sets.rows import read_rows
from tenfold.systems.query_summarizer.sets.topic import require_references


def labels(
    data: str,
    out: str,
    *,
    kind: Literal["oracle", "presumm", "soft"] = "oracle",
    words: int = 250,
    sentences: int = 3,
    fields: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Label the sentences of documents by what the reference summaries say.

    Args:
        data: JSONL file.
        out: JSONL file to write; each row has id, query, documents (lists of sentences), summaries and labels.
        kind: oracle (several references, a budget of words), presumm (one reference, a number of sentences), or soft
            (similarity of each sentence).
        words: budget of the oracle, at most as many words as the longest reference has.
        sentences: of presumm, at most.
        fields: names of the fields query, document, summary; guessed where not given.
    """
    refuse_overwriting(out, data)
    topics = require_references(read_rows(data, fields))
    rows, positive, total = [], 0.0, 0
    for topic in topics:
        texts = topic.texts
        if kind == "soft":
            values = [round(value, 6) for value in soft_labels(texts, topic.references)]
        elif kind == "oracle":
            values = hard_labels(texts, topic.references, words)
        else:
            chosen = set(single_reference_oracle(texts, topic.references[0], sentences))
            values = [float(number in chosen) for number in range(len(texts))]
        positive, total = positive + sum(values), total + len(values)
        rows.append(
            {
                "id": topic.id,
                "query": topic.query,
                "documents": [[sentence.text for sentence in document.sentences] for document in topic.documents],
                "summaries": [list(reference) for reference in topic.references],
                "labels": values,
                "group": topic.group,
            }
        )
    write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {"out": out, "topics": len(rows), "sentences": total, "positive": round(positive, 3)}
