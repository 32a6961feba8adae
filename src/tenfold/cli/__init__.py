"""The command line: ``commands`` parse and call, ``arguments`` read typed options, ``console`` says what happened."""

from tenfold.cli.commands import main

__all__ = ["main"]
