"""Read one array from a `.npy` file that anybody may have written."""

from pathlib import Path
from tokenize import TokenError

import numpy as np
import numpy.typing as npt

from ditc.runtime.errors import DitcError

__all__ = ["read_array"]


def read_array(path: Path, what: str, *, mapped: bool = False) -> npt.NDArray[np.generic]:
    """Return the array of a `.npy` file.

    Args:
        path: the file.
        what: what messages begin with, as an option and the path.
        mapped: whether values are read from the file as they are looked at.

    Raises:
        DitcError: if it can't be read, is no array, holds objects, or says that it is larger than
            memory.
    """
    try:
        with np.errstate(over="ignore"):  # sizes beyond 64 bits are larger than the file
            found = np.load(path, allow_pickle=False, mmap_mode="r" if mapped else None)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError, RecursionError) as error:
        raise DitcError(f"{what}: is no array that can be read: {error}") from error
    except MemoryError as error:
        raise DitcError(f"{what}: says that it is larger than memory: {error}") from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise DitcError(f"{what}: is an archive, expected one array")
    return found
