"""Numbers of things, as they are written."""

__all__ = ["counted"]


def counted(number: int, thing: str) -> str:
    """Return `1 pair`, `2 pairs`: a number and what is counted, whose plural takes an s."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
