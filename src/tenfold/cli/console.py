"""The console of the command line: one line for what is wrong, claims at any width, Ctrl-C and SIGTERM alike."""

import re
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenfold.errors import TenfoldWarning
from tenfold.files import printable

INTERRUPTED = "what is done is kept"


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does: whatever holds a terminal or a folder lets go of it."""


def say(message: str, code: int) -> int:
    """Print a message for the user to standard error; gives the exit code back."""
    print(f"tenfold: {one_line(message)}", file=sys.stderr)
    return code


def one_line(message: str) -> str:
    """The message in one line without control characters, Python's types under the names that a user writes."""
    return printable(re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(message.split())), longest=1000)


def paragraph(text: str, indent: str = "") -> str:
    """A text for people, in lines of the terminal's width, between 40 and 100 columns."""
    import shutil
    import textwrap

    width = min(max(shutil.get_terminal_size().columns, 40), 100)
    return textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def listed(rows: Mapping[str, str]) -> str:
    """Names with what they are: beside each other where the terminal is wide, below each other where it is not."""
    import shutil

    column = max(map(len, rows)) + 4
    if shutil.get_terminal_size().columns < column + 50:
        return "\n".join(f"  {name}\n{paragraph(text, '    ')}" for name, text in rows.items())
    return "\n".join(f"  {name}".ljust(column) + paragraph(text, " " * column).lstrip() for name, text in rows.items())


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within the block SIGTERM raises ``Terminated``."""

    def end(signum: int, frame: Any) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Tenfold's own warnings are for the user; a warning shows once, as a line and not as a place in the code."""
    before = warnings.showwarning

    def show(message: Any, category: Any, *place: Any, **more: Any) -> None:
        if issubclass(category, TenfoldWarning):
            say(f"warning: {message}", 0)
        else:
            before(message, category, *place, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def print_claims(results: Any, folder: Path) -> None:
    """One line per claim (verdict, number, statement), wrapped at any width from 40 columns up."""
    from rich.console import Console
    from rich.text import Text

    from tenfold.results import count_verdicts

    colours = {"holds": "green", "not settled": "yellow", "does not hold": "red"}
    console = Console(stderr=True, highlight=False)
    if results.summary:
        console.print(results.summary, markup=False)
    for claim in results.claims:
        value = "not measured" if claim.value is None else f"{claim.value:.4g} {claim.unit}"
        interval = "" if claim.interval is None else f" ({claim.interval[0]:.3g} to {claim.interval[1]:.3g})"
        line = Text(f"{claim.verdict:<14}", style=colours[claim.verdict])
        line.append(f"{value}{interval}, target {claim.target}: {claim.statement}", style="default")
        console.print(line)
    console.print(f"{count_verdicts(results.claims)}; report: {folder / 'report.html'}", soft_wrap=True, markup=False)
