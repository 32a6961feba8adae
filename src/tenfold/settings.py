"""Settings are refused before any work: ranges stand in the types of dataclass fields, and one function checks them.


    @dataclass
    class OptimizerOptions:
        learning_rate: PositiveFloat = 0.1
        smoothing: Share = 0.0

    check_settings(OptimizerOptions(learning_rate=-1))  # UserError: learning_rate must be greater than 0; got -1

The command line checks each value as it is given (jsonargparse reads the same types), and ``check_settings`` all of
them, however they were made. What one field's type cannot say (one setting against another) is said by a method
``check(self)`` of the dataclass, which raises ``UserError``.
"""

import dataclasses
import math
from typing import Annotated, Any

from annotated_types import Interval

from tenfold.errors import UserError


class _InWords:
    """Beside an interval: how help texts say it."""

    def __init__(self, words: str) -> None:
        self.words = words

    def __repr__(self) -> str:
        return self.words


_WHOLE: Any = 2**63

PositiveInt = Annotated[int, Interval(gt=0, lt=_WHOLE), _InWords("above 0")]
"""1, 2, 3, ..."""
Count = Annotated[int, Interval(ge=0, lt=_WHOLE), _InWords("from 0")]
"""0, 1, 2, ..."""
Seed = Annotated[int, Interval(ge=0, lt=_WHOLE), _InWords("from 0")]
"""What random generators take."""
PositiveFloat = Annotated[float, Interval(gt=0), _InWords("above 0")]
"""Above 0, finite."""
NonNegativeFloat = Annotated[float, Interval(ge=0), _InWords("from 0")]
"""0 or above, finite."""
Share = Annotated[float, Interval(ge=0, le=1), _InWords("from 0 to 1")]
"""In [0, 1]."""
PositiveShare = Annotated[float, Interval(gt=0, le=1), _InWords("above 0, to 1")]
"""In (0, 1]."""
ProperShare = Annotated[float, Interval(ge=0, lt=1), _InWords("from 0, below 1")]
"""In [0, 1): all of it would leave nothing."""


def check_settings(settings: Any) -> None:
    """Check a dataclass of settings, nested ones too: types, ranges, finite numbers, and what ``check`` methods say.

    Args:
        settings: a dataclass instance; its fields' types may be annotated as those of this module.

    Raises:
        UserError: names the first setting that is wrong by its dotted name, what it must be, and what it is.
    """
    from pydantic import TypeAdapter, ValidationError

    values = dataclasses.asdict(settings)
    _refuse_non_finite(values, "")
    try:
        TypeAdapter(type(settings)).validate_python(values)
    except ValidationError as error:
        raise UserError(_first(error.errors())) from None
    _check_parts(settings)


def _refuse_non_finite(value: Any, name: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number; got {value}")
    if isinstance(value, dict):
        for key, part in value.items():
            _refuse_non_finite(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for part in value:
            _refuse_non_finite(part, name)


def _check_parts(settings: Any) -> None:
    for field in dataclasses.fields(settings):
        part = getattr(settings, field.name)
        if dataclasses.is_dataclass(part):
            _check_parts(part)
    if hasattr(settings, "check"):
        settings.check()


def problem_with(value: Any, kind: Any) -> str:
    """What is wrong with a value for a type, as the end of a sentence: ``must be greater than 0; got -1``.

    Args:
        value: as it was given.
        kind: a type, annotated or not.

    Returns:
        The sentence's end; empty where the type takes the value.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        return _wording(error.errors())
    return ""


def _first(errors: Any) -> str:
    """The setting of the first error, by its dotted name, and what is wrong with it."""
    where = errors[0]["loc"]
    # Errors of one setting, whose type is a union, differ in what follows the setting's own place.
    kinds = {"int", "float", "str", "bool", "list", "dict"}  # as members of a union are named
    names = [str(part) for part in where if isinstance(part, int) or (part.isidentifier() and part not in kinds)]
    same = [error for error in errors if [str(part) for part in error["loc"] if str(part) in names] == names]
    return f"{'.'.join(names)} {_wording(same or errors[:1])}"


_PLAIN_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "a text",
    "a valid list": "a list",
    "a valid dictionary": "a table of names and values",
}


def _wording(errors: Any) -> str:
    """Validation errors of one value as the end of a sentence; of a union's members, none that wanted ``None``."""
    telling = [error for error in errors if error["type"] != "none_required"] or errors
    parts = [wording(error["msg"]).removeprefix("must be ") for error in telling]
    return f"must be {' or '.join(dict.fromkeys(parts))}; got {telling[0]['input']!r}"


def wording(message: str) -> str:
    """A validation message as the end of a sentence about a setting: ``must be greater than 0``."""
    part = message.partition(", unable to ")[0].partition(", got ")[0]
    part = part.removeprefix("Input should be ").removeprefix("Input should ").strip()
    return f"must be {_PLAIN_WORDS.get(part, part)}"
