"""Arguments of encoders are refused where they mean nothing."""

from collections.abc import Sequence


def one_of(name: str, value: object, known: Sequence[object]) -> None:
    """Refuse a word or number that is none of the known ones.

    Raises:
        ValueError: it is none of them.
    """
    if value not in known or isinstance(value, bool):
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}; got {value!r}")


def at_least(low: int, **values: object) -> None:
    """Refuse what is no whole number of at least ``low``.

    Raises:
        ValueError: names the first that is none.
    """
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ValueError(f"{name} must be a whole number of at least {low}; got {value!r}")
