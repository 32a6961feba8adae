"""From scores of sentences to summaries, and from summaries to ROUGE."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tenfold.systems.query_summarizer.experiment.settings import Config
from tenfold.systems.query_summarizer.rouge.scoring import DUC_MEASURES, Rouge
from tenfold.systems.query_summarizer.rouge.stemming import find_exceptions
from tenfold.systems.query_summarizer.selection.summary import Summary, make_summary
from tenfold.systems.query_summarizer.sets.topic import Topic

_SHORT = {"ROUGE-1": "r1", "ROUGE-2": "r2", "ROUGE-SU4": "su4"}


def make_rouge(words: int) -> Rouge:
    """The scorer of a run: exact where the lists of irregular forms are at hand, else by Porter's rules alone."""
    return Rouge(DUC_MEASURES, limit=words, stem="wordnet" if find_exceptions() else "porter")


def summary_with(config: Config, topic: Topic, scores: Tensor, masked: Tensor | None = None) -> Summary:
    """The summary of a topic by the settings of the run."""
    return make_summary(
        topic.query,
        topic.documents,
        scores.double().numpy(),
        scorer="query-summarizer",
        words=config.selection.words,
        block=config.selection.block,
        without_query=None if masked is None else masked.double().numpy(),
    )


def measure(rouge: Rouge, topics: Sequence[Topic], lines: Sequence[Sequence[str]]) -> dict[str, Any]:
    """ROUGE recall and F over the test topics in points, by topic too, and without the topics about a plot."""
    found = rouge.corpus(
        {str(number): own for number, own in enumerate(lines)},
        {str(number): topic.references for number, topic in enumerate(topics)},
    )
    answer: dict[str, Any] = {}
    for name, short in _SHORT.items():
        score = found[name]
        by_topic = [100 * score.topics[str(number)].recall for number in range(len(topics))]
        answer[short] = sum(by_topic) / len(by_topic)
        answer[f"{short}_f"] = 100 * score.f.plain_mean
        answer[f"{short}_interval"] = [100 * score.recall.low, 100 * score.recall.high]
        answer[f"{short}_by_topic"] = by_topic
        rest = [value for value, topic in zip(by_topic, topics, strict=True) if topic.domain != "plot"]
        answer[f"{short}_no_plot"] = sum(rest) / len(rest) if 0 < len(rest) < len(topics) else None
    return answer
