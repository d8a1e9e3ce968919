"""The method of DiTFastAttn in eager torch, by its definition and in fp64.

Independent of the passes: attention modules get another `forward`, windows are masks over full
attention, and the latest output and residual are kept always, needed or not.
"""

import copy
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils import _pytree as pytree

__all__ = ["Eager", "masked_attention", "tile_mask", "tile_places", "visible"]

Heads = torch.Tensor
"""`[batch, heads, tokens, head_dim]`."""


@functools.cache
def visible(tokens: int, radius: int, block: int) -> torch.Tensor:
    """Return `[tokens, tokens]`: whether query i sees key j, pair by pair."""
    rows = [
        [abs(i // block - j // block) <= radius // block for j in range(tokens)]
        for i in range(tokens)
    ]
    return torch.tensor(rows)


def tile_places(grid: Sequence[int]) -> list[tuple[int, ...]]:
    """Return each token's place on a grid, the last axis running fastest."""
    return list(itertools.product(*map(range, grid)))


def tile_mask(grid: Sequence[int], tile: Sequence[int], reach: Sequence[int]) -> torch.Tensor:
    """Return `[tokens, tokens]`: whether query i sees key j, axis by axis, tokens line by line."""
    mask = torch.ones(len(tile_places(grid)), len(tile_places(grid)), dtype=torch.bool)
    for axis, (size, step, near) in enumerate(zip(grid, tile, reach, strict=True)):
        own = torch.tensor([place[axis] // step for place in tile_places(grid)])
        last = (size - 1) // step
        middle = own.clamp(min(near, last - near), max(near, last - near))
        if 2 * near < last:
            mask &= (middle[:, None] - own[None, :]).abs() <= near
    return mask


def masked_attention(
    query: Heads, key: Heads, value: Heads, scale: float, mask: torch.Tensor | None
) -> Heads:
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.einsum("bhqk,bhkd->bhqd", torch.softmax(scores, dim=-1), value)


@dataclass
class _State:
    output: torch.Tensor | None = None
    residual: Heads | None = None


class Eager:
    """A denoiser run step after step under a plan.

    Args:
        module: the denoiser; it is copied.
        attentions: module path of each site.
        cells: for each step the method of each site, as plain text.
        windows: (radius, block) of each site, or `[tokens, tokens]`: whether i sees j.
        cfg: `cond-first`, `uncond-first` or None.
    """

    def __init__(
        self,
        module: nn.Module,
        attentions: Mapping[str, str],
        cells: Sequence[Mapping[str, str]],
        windows: Mapping[str, tuple[int, int] | torch.Tensor],
        cfg: str | None,
    ) -> None:
        self.module = _unfold(copy.deepcopy(module).double().eval())
        self.cells, self.windows, self.cfg = cells, windows, cfg
        self.step = 0
        self.states: dict[str, _State] = {}
        for site, path in attentions.items():
            attention = self.module.get_submodule(path)
            attention.forward = self._forward(site, attention)  # type: ignore[method-assign]

    def __call__(self, step: int, **kwargs: object) -> list[torch.Tensor]:
        """Return the denoiser's outputs at a step, flat, in fp64."""
        self.step = step
        with torch.no_grad():
            returned = self.module(**pytree.tree_map(_double, kwargs))
        return pytree.tree_leaves(returned)

    def keep(self, site: str, residual: Heads) -> None:
        """Put a residual where an earlier step would have left it."""
        self.states[site] = _State(residual=residual)

    def _forward(self, site: str, attention: nn.Module):
        def forward(hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            method = self.cells[self.step].get(site, "full")
            state = self.states.setdefault(site, _State())
            if method != "ast":
                state.output = self._compute(site, attention, method, state, hidden_states)
            assert state.output is not None
            return state.output

        return forward

    def _compute(
        self, site: str, attention: nn.Module, method: str, state: _State, x: torch.Tensor
    ) -> torch.Tensor:
        shares = "asc" in method
        query, key, value, scale = _project(attention, self._conditional(x) if shares else x)
        window = self.windows[site]
        whole = isinstance(window, torch.Tensor)
        mask = window if whole else visible(query.shape[2], *window)
        windowed = masked_attention(query, key, value, scale, mask)
        if "wa-rs" in method:
            assert state.residual is not None
            kept = self._conditional(state.residual) if shares else state.residual
            return self._both(_output(attention, windowed + kept), shares)
        full = masked_attention(query, key, value, scale, None)
        state.residual = self._both(full - windowed, shares)
        return self._both(_output(attention, full), shares)

    def _conditional(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2)
        return {"cond-first": first, "uncond-first": second}[str(self.cfg)]

    def _both(self, x: torch.Tensor, shared: bool) -> torch.Tensor:
        return torch.cat([x, x]) if shared else x


def _double(leaf: object) -> object:
    floating = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    return leaf.double() if floating else leaf  # type: ignore[union-attr]


def _split(x: torch.Tensor, heads: int) -> Heads:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _project(attention: nn.Module, x: torch.Tensor) -> tuple[Heads, Heads, Heads, float]:
    """Return query, key, value and scale of the attentions in `models`."""
    heads = attention.heads
    if hasattr(attention, "qkv"):
        parts = attention.qkv(x).chunk(3, dim=-1)
    else:
        parts = attention.to_q(x), attention.to_k(x), attention.to_v(x)
    query, key, value = (_split(part, heads) for part in parts)
    return query, key, value, getattr(attention, "fixed_scale", query.shape[-1] ** -0.5)


def _output(attention: nn.Module, x: Heads) -> torch.Tensor:
    x = x.transpose(1, 2).flatten(2)
    if hasattr(attention, "proj"):
        return attention.proj(x)
    last = attention.to_out
    return last[0](x) if isinstance(last, nn.ModuleList) else last(x)


class _Unfolded(nn.Module):
    """`models.SingleModule` with a module for each attention."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.attentions = nn.ModuleList()
        for qkv, proj in zip(weights[::2], weights[1::2], strict=True):
            attention = nn.Module()
            attention.heads, attention.fixed_scale = 2, 0.3
            attention.qkv = nn.Linear(*reversed(qkv.shape), bias=False, dtype=qkv.dtype)
            attention.proj = nn.Linear(*reversed(proj.shape), bias=False, dtype=proj.dtype)
            attention.qkv.weight, attention.proj.weight = qkv, proj
            self.attentions.append(attention)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + torch.sin(t)[:, None, None]
        first = x
        for attention in self.attentions:
            x = x + attention(x).tanh()
        return x, x - first


def _unfold(module: nn.Module) -> nn.Module:
    weights = getattr(module, "weights", None)
    return _Unfolded(list(weights)) if isinstance(weights, nn.ParameterList) else module
