"""SQuALITY (Wang et al., EMNLP 2022): questions about short stories, four references of about 226 words each."""

from pathlib import Path

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.sets.topic import Topic, find_file, json_rows
from tenfold.systems.query_summarizer.text.sentences import document_of, split_sentences


def read_squality(folder: str | Path, split: str) -> list[Topic]:
    """Topics of a split, five to a story. Question 1 is always the plot: its topics have the domain ``plot``.

    Args:
        folder: holds ``SPLIT.jsonl`` or ``SPLIT.jsonl.xz``.
        split: ``train``, ``dev`` or ``test``.

    Raises:
        UserError: the file is missing, damaged, or no file of SQuALITY.
    """
    path = find_file(
        Path(folder), f"{split}.jsonl", f"{split}.jsonl.xz", published="github.com/nyu-mll/SQuALITY, data/v1-3/txt"
    )
    topics = []
    for number, row in json_rows(path):
        try:
            story = str(row["metadata"]["passage_id"])
            document = document_of(row["document"], story)
            for question in row["questions"]:
                place = int(question["question_number"])
                topics.append(
                    Topic(
                        id=f"{story}-{place}",
                        query=" ".join(question["question_text"].split()),
                        documents=(document,),
                        references=tuple(
                            tuple(sentence.text for sentence in split_sentences(response["response_text"]))
                            for response in question["responses"]
                        ),
                        group=story,
                        domain="plot" if place == 1 else "question",
                    )
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}, line {number} is not a story of SQuALITY: {error!r}") from error
    return topics
