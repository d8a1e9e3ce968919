"""Call a pipeline: what its own code raises is told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ditc.runtime.errors import DitcError, first_line

__all__ = ["OUT_OF_MEMORY", "calling"]

OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""How torch says so: by a `RuntimeError`."""


@contextmanager
def calling(model: str | Path, pipeline: str) -> Iterator[None]:
    """Turn what a pipeline raises into an error that says what to do; let want of memory pass.

    Args:
        model: what the user named.
        pipeline: what its pipeline is called.

    Raises:
        DitcError: in the place of any other exception.
    """
    try:
        yield
    except (DitcError, MemoryError):
        raise
    except (TypeError, ValueError) as error:
        raise DitcError(
            f"model {model}: {pipeline} refuses its arguments ({first_line(error)}): give them "
            "with --call"
        ) from error
    except Exception as error:  # whatever the pipeline's own code ran into
        if OUT_OF_MEMORY in str(error):
            raise
        raise DitcError(
            f"model {model}: {pipeline} raised {type(error).__name__}: {first_line(error)}: check "
            "--call"
        ) from error
