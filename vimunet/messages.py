"""What messages have in common: long lists are shortened, errors say of what they are."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def some_of(names: Iterable[str], most: int = 5) -> str:
    """Join the first names by commas, and say how many more there are.

    Examples:
        >>> some_of(["a", "b", "c", "d"], most=2)
        'a, b and 2 more'
    """
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def some_lines(lines: Iterable[str], most: int = 20) -> str:
    r"""Begin a line of its own for each of the first, and say how many more there are.

    Examples:
        >>> some_lines(["a", "b", "c", "d"], most=2)
        '\n  a\n  b\n  ... and 2 more'
    """
    lines = list(lines)
    more = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    return "".join(f"\n  {line}" for line in [*lines[:most], *more])


@contextmanager
def naming(name: object) -> Iterator[None]:
    """Begin the message of a ValueError with the name of what it is about.

    Examples:
        >>> with naming("cell7"):
        ...     raise ValueError("labels must be whole numbers.")
        Traceback (most recent call last):
        ValueError: cell7: labels must be whole numbers.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
