"""The grid that image tokens lie on: latents, a count of tokens → (rows, columns), or frames too.

A denoiser cuts latents into patches, so that the count of tokens tells the patch. Latents that are
packed into tokens before the call come with the places of the tokens, as coordinates or as sizes.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import torch

from .arguments import flatten
from .program import Site

__all__ = ["token_grid"]

MAX_PATCH = 16
Grid = tuple[int, ...]


def token_grid(
    sites: Sequence[Site],
    latents: tuple[int, ...],
    channels: int | None,
    kwargs: Mapping[str, object],
) -> Grid | None:
    """Return (rows, columns) or (frames, rows, columns) of the image tokens of a program's sites.

    Args:
        sites: of the program; those that a plan may compress tell the count of tokens.
        latents: shape of the latents, the batch first.
        channels: of the latents, which tells their axis from the frames'; the second axis if None.
        kwargs: the call's arguments, where packed latents have the places of their tokens.

    Returns:
        None where the sites differ in their tokens, or no grid has so many.
    """
    counts = {site.tokens - (site.text[1] - site.text[0]) for site in sites if site.eligible}
    if len(counts) != 1:
        return None
    (tokens,) = counts
    found = (*_of_latents(latents, channels, tokens), *_of_places(kwargs, tokens))
    return next(iter(found), None)


def _of_latents(latents: tuple[int, ...], channels: int | None, tokens: int) -> Iterator[Grid]:
    """Yield the grids that patches of the latents make, undivided frames first."""
    *front, rows, columns = latents[1:] if len(latents) > 3 else (0, 0)
    frames = _frames(front, channels)
    for patch in range(1, MAX_PATCH + 1):
        if not rows or rows % patch or columns % patch:
            continue
        plane = (rows // patch, columns // patch)
        if prod(plane) == tokens:
            yield plane
        for depth in range(1, min(MAX_PATCH, frames) + 1):
            if frames % depth == 0 and frames // depth * prod(plane) == tokens:
                yield (frames // depth, *plane)


def _frames(front: Sequence[int], channels: int | None) -> int:
    if len(front) != 2:
        return 0
    first, second = front
    return first if channels == second != first else second


def _of_places(kwargs: Mapping[str, object], tokens: int) -> Iterator[Grid]:
    """Yield the grids that arguments tell: a row of coordinates a token, or sizes."""
    sizes: dict[str, list[int]] = {}
    for path, leaf in flatten(kwargs):
        if isinstance(leaf, torch.Tensor):
            yield from _of_coordinates(leaf, tokens)
        elif isinstance(leaf, int) and not isinstance(leaf, bool):
            sizes.setdefault(path.rpartition(".")[0], []).append(leaf)
    for path, found in sizes.items():
        if path and len(found) in (2, 3) and prod(found) == tokens:
            yield _without_single_frame(found)


def _of_coordinates(ids: torch.Tensor, tokens: int) -> Iterator[Grid]:
    if ids.dim() == 3:
        ids = ids[0]
    if ids.dim() != 2 or ids.shape[0] != tokens or ids.shape[1] not in (2, 3):
        return
    places = [torch.unique(column) for column in ids.unbind(1)]
    counts = [len(column) for column in places]
    every = torch.cartesian_prod(*places)
    if prod(counts) == tokens and torch.equal(every, ids):
        yield _without_single_frame(counts)


def _without_single_frame(sizes: Sequence[int]) -> Grid:
    return tuple(sizes[1:] if len(sizes) == 3 and sizes[0] == 1 else sizes)
