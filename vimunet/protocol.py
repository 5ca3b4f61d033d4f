"""How scores are counted: fairly, or as they were published."""

from typing import Literal, cast, get_args

from vimunet.deprecation import renamed

Protocol = Literal["fair", "published"]
"""What differs is said where it matters."""


def checked_protocol(protocol: str) -> Protocol:
    """Return a protocol, by its present name.

    Raises:
        ValueError: If there is no such protocol.
    """
    protocol = renamed("protocol", protocol, {"paper": "published"})
    if protocol not in get_args(Protocol):
        raise ValueError(f"Unknown protocol {protocol!r}. Known: {', '.join(get_args(Protocol))}.")
    return cast(Protocol, protocol)
