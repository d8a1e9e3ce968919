"""Read the windows of a plan file."""

from ditc.runtime.errors import PlanError

from .plan_fields import read_fields, read_integer, read_list
from .tile_window import LONGEST, RANKS, TileWindow
from .window import SiteWindow, Window

__all__ = ["read_window"]


def read_window(value: object, where: str) -> SiteWindow:
    """Return a window: of `radius` and `block`, or of `grid`, `tile` and `reach`.

    Raises:
        PlanError: if it is neither, naming the field at fault.
    """
    if isinstance(value, dict) and "grid" in value:
        return _tiles(value, where)
    fields = read_fields(value, where, {"radius", "block"})
    radius = read_integer(fields["radius"], f"{where}.radius", 0, 2**31)
    block = read_integer(fields["block"], f"{where}.block", 1, 2**31)
    if radius % block:
        raise PlanError(f"{where}: radius {radius} is no multiple of its block {block}")
    return Window(radius, block)


def _tiles(value: object, where: str) -> TileWindow:
    fields = read_fields(value, where, {"grid", "tile", "reach"})
    grid = _sizes(fields["grid"], f"{where}.grid", 1)
    tile = _sizes(fields["tile"], f"{where}.tile", 1)
    reach = _sizes(fields["reach"], f"{where}.reach", 0)
    try:
        return TileWindow(grid, tile, reach)
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from error


def _sizes(value: object, where: str, low: int) -> tuple[int, ...]:
    sizes = read_list(value, where)
    if len(sizes) not in RANKS:
        raise PlanError(f"{where}: expected a number for each of two or three axes")
    return tuple(read_integer(size, where, low, LONGEST) for size in sizes)
