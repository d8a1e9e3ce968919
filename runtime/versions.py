"""The format of bundles' manifests, and its version."""

from .entries import MAX_COUNT
from .errors import BundleError
from .fields import JsonValue, read_integer
from .files import MANIFEST_FILE

__all__ = ["FORMAT", "VERSION", "read_version"]

FORMAT = "ditc-bundle"
VERSION = 1


def read_version(value: JsonValue) -> dict[str, JsonValue]:
    """Return a manifest's object if it is a bundle's of a known version, or raise BundleError."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else value
        raise BundleError(
            f"{MANIFEST_FILE}: the format is {found!r}, expected {FORMAT!r}; this is no ditc bundle"
        )
    version = read_integer(value.get("version"), "version", 1, MAX_COUNT)
    if version > VERSION:
        raise BundleError(
            f"{MANIFEST_FILE}: version {version} was written by a newer ditc "
            f"({value.get('ditc')!r}), expected at most version {VERSION}; upgrade ditc"
        )
    return value
