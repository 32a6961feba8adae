"""The script's print format, and the file names of NIST and pyrouge, so that old programs read on."""

import re
from collections.abc import Mapping
from pathlib import Path

from tenfold.errors import UserError
from tenfold.files import regular
from tenfold.systems.query_summarizer.rouge.scoring import CorpusScore

_RULE, _DOTS = "-" * 45, "." * 45
_NIST = re.compile(r"^([A-Za-z]*\d+)(-[AB])?\.([MPU])\.(\d+)\.([A-Za-z])\.([A-Za-z0-9]+)$")


def format_scores(peer: str, scores: Mapping[str, CorpusScore], *, topics: bool = False) -> str:
    """The text that ROUGE-1.5.5 prints for one system.

    Args:
        peer: the system's id.
        scores: by measure, of ``Rouge.corpus``.
        topics: whether each topic is printed, too (``-d``).
    """
    lines = []
    for measure, score in scores.items():
        lines.append(_RULE)
        for letter, interval in (("R", score.recall), ("P", score.precision), ("F", score.f)):
            lines.append(
                f"{peer} {measure} Average_{letter}: {interval.mean:.5f} "
                f"(95%-conf.int. {interval.low:.5f} - {interval.high:.5f})"
            )
        if topics:
            lines.append(_DOTS)
            lines += [
                f"{peer} {measure} Eval {topic} R:{found.recall:.5f} P:{found.precision:.5f} F:{found.f:.5f}"
                for topic, found in sorted(score.topics.items())
            ]
    return "\n".join(lines) + "\n"


def read_summaries(folder: str | Path) -> dict[str, dict[str, list[str]]]:
    """Summary files of a folder: for each topic the lines of each author.

    Two ways to name files are read: NIST's ``D0601.M.250.A.A`` (topic, kind, size, assessor, author) and ``topic`` or
    ``topic_author``, with or without ``.txt``.

    Args:
        folder: of plain files, one sentence a line; bytes that are not UTF-8 are read as Latin-1, as in DUC's.

    Raises:
        UserError: the folder is missing or holds no file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of summaries")
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            topic, author = _topic_and_author(path.name)
            if author in found.setdefault(topic, {}):
                raise UserError(f"{folder} has two summaries of topic {topic!r} by {author or 'nobody named'!r}")
            found[topic][author] = read_lines(path)
    if not found:
        raise UserError(f"{folder} holds no summary file")
    return found


def read_lines(path: Path) -> list[str]:
    """Lines of a summary file; Latin-1 where it is not UTF-8."""
    try:
        content = regular(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.replace("\r\n", "\n").split("\n")


def _topic_and_author(name: str) -> tuple[str, str]:
    match = _NIST.match(name)
    if match:
        return (match[1] + (match[2] or "")).lower(), match[6]
    stem = name.removesuffix(".txt")
    topic, mark, author = stem.rpartition("_")
    return (topic, author) if mark and author else (stem, "")
