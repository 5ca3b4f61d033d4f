"""What several commands print."""

from collections.abc import Sequence


def known_models() -> str:
    """List the models that `--model` may name, over several lines."""
    from vimunet.checkpoint import embedded_models

    lines = [f"  {name:<10} {purpose}" for name, purpose in embedded_models().items()]
    return "\n".join(["Models that come with vimunet:", *lines, "or the path of a model file."])


def some_of(names: Sequence[str], most: int = 5) -> str:
    """Join the first names by commas, and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
