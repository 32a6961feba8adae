"""What goes wrong because of the input: one line for the user, never a traceback."""

from importlib import import_module
from types import ModuleType


class UserError(Exception):
    """Wrong input. The message is one line: what is wrong, and what to do about it.

    The command line prints it and ends with exit code 2; in a notebook it is an ordinary exception.
    """


class RunStopped(Exception):
    """A run that cannot go on, though its input was right: one line; what was saved can be resumed.

    The command line prints it and ends with exit code 1.
    """


class TenfoldWarning(UserWarning):
    """Something that works but is probably not what the user wanted."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library, or say which extra brings it.

    Args:
        module: the module's import name, such as ``"onnxruntime"``.
        extra: the extra of ``tenfold`` that installs it, such as ``"onnx"``.

    Raises:
        UserError: the module is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = (error.name or module).partition(".")[0]
        raise UserError(
            f"this needs the package {package!r}, which is not installed: pip install 'tenfold[{extra}]'"
        ) from error
