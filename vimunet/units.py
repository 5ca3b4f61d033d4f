"""Units of length and time: what they are called in files, and how long they are. One table.

NGFF's name of a unit ("micrometer") is the one that the library uses; `unit_name` finds it for what
other programs write.
"""

from typing import Literal

Kind = Literal["space", "time", "channel"]

MICROMETRES = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
"""Units of length that NGFF knows, in µm."""

SHORT = {
    "angstrom": "A",
    "nanometer": "nm",
    "micrometer": "um",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
}
"""How a unit is written in the name of a column."""

UNITS: dict[str, frozenset[str]] = {
    "space": frozenset(MICROMETRES),
    "time": frozenset({"day", "hour", "microsecond", "millisecond", "minute", "second"}),
    "channel": frozenset(),
}
"""Units of each kind of axis."""

_SAME = {
    "um": "micrometer",
    "µm": "micrometer",
    "μm": "micrometer",
    "micron": "micrometer",
    "micrometre": "micrometer",
    "nm": "nanometer",
    "nanometre": "nanometer",
    "mm": "millimeter",
    "millimetre": "millimeter",
    "s": "second",
    "ms": "millisecond",
    "min": "minute",
    "h": "hour",
}
_NO_UNIT = ("", "px", "pixel", "pixels")


def unit_name(unit: str, kind: Kind) -> str | None:
    """Give the name that NGFF has for a unit; None if it has none.

    Examples:
        >>> unit_name("µm", "space"), unit_name("Micron", "space"), unit_name("pixel", "space")
        ('micrometer', 'micrometer', None)
    """
    text = unit.strip()
    name = _SAME.get(text, _SAME.get(text.lower(), text.lower()))
    return name if name in UNITS[kind] else None


def is_no_unit(unit: str) -> bool:
    """Tell whether a text says that there is no unit."""
    return unit.strip().lower() in _NO_UNIT


def short_unit(unit: str) -> str:
    """Give a unit of length as part of a name; what is not known stays, "px" if there is none.

    Examples:
        >>> short_unit("micrometer"), short_unit("nm"), short_unit("pixel"), short_unit("furlong")
        ('um', 'nm', 'px', 'furlong')
    """
    name = unit_name(unit, "space")
    if name is not None:
        return SHORT[name]
    return "px" if is_no_unit(unit) else unit.strip()
