"""What a bundle's plan and its manifest both tell has to be the same."""

from pathlib import Path

from .errors import BundleError
from .fields import load_json, read_mapping
from .files import PLAN_FILE, read_text
from .manifest import Manifest

__all__ = ["check_plan"]


def check_plan(root: Path, manifest: Manifest) -> None:
    """Check that a bundle's plan, where it has one, is for its layout and its steps.

    Args:
        root: the bundle's folder.
        manifest: of the bundle, or of one of its variants.

    Raises:
        BundleError: if it is for others, or no plan.
    """
    name = manifest.file(PLAN_FILE)
    if name not in manifest.files:
        return
    plan = read_mapping(load_json(read_text(root, name), name), name)
    held = read_mapping(plan.get("for"), f"{name}: for")
    for field, expected in (("cfg", manifest.cfg), ("steps", manifest.steps)):
        found = held.get(field)
        if found != expected or isinstance(found, bool):
            raise BundleError(
                f"{root / name}: is for {field} {found!r}, the manifest has {expected!r}: one of "
                "them was changed, copy or compile the bundle again"
            )
