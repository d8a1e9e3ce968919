"""The five methods in eager torch, for any model: every attention that it calls is intercepted.

Independent of the passes: the model's own code runs, in fp64 as far as it stays there; windows are
masks over full attention; the latest output and residual are kept always, needed or not.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["Intercepted", "arrow_mask"]

ATTENTION: Callable[..., object] = functional.scaled_dot_product_attention
LINEAR: Callable[..., object] = functional.linear
NORM: Callable[..., object] = torch.linalg.vector_norm
HIDDEN = -1e6
"""Of keys that the model hides; a query that a window shows no others sees these."""
Heads = torch.Tensor
"""`[..., heads, tokens, head_dim]`."""


def arrow_mask(tokens: int, window: tuple[int, int], text: tuple[int, int]) -> torch.Tensor:
    """Return `[tokens, tokens]`: whether query i sees key j, pair by pair.

    Args:
        tokens: of image and text together.
        window: radius and block, among image tokens.
        text: half-open range of text tokens, which see and are seen by all.
    """
    radius, block = window
    image = [token for token in range(tokens) if not text[0] <= token < text[1]]
    place = {token: number for number, token in enumerate(image)}
    mask = torch.ones(tokens, tokens, dtype=torch.bool)
    for i in image:
        for j in image:
            mask[i, j] = abs(place[i] // block - place[j] // block) <= radius // block
    return mask


@dataclass
class _State:
    output: Heads | None = None
    residual: Heads | None = None
    returned: object = None


class Intercepted(TorchFunctionMode):
    """A denoiser run step after step under a plan.

    Args:
        module: the denoiser; it is copied.
        sites: name of each attention with its numbers of queries and keys, in the order in which
            they run; attentions inside torch's own modules are passed by.
        cells: for each step the method of each site, as plain text; full where there is none.
        windows: (radius, block) of each site that may have one, or `[tokens, tokens]`: whether
            query i sees key j.
        texts: half-open range of text tokens of each site that has some.
        cfg: `cond-first`, `uncond-first` or None.
        fused: whether modules of attention do more than attention, so that only the attention
            itself is shared; else what the module returns is.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        sites: Sequence[tuple[str, int, int]],
        cells: Sequence[Mapping[str, str]],
        windows: Mapping[str, tuple[int, int] | torch.Tensor],
        texts: Mapping[str, tuple[int, int]],
        cfg: str | None,
        *,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).double().eval()
        self.sites, self.cells, self.windows, self.texts = sites, cells, windows, texts
        self.cfg = cfg
        self.states = {site: _State() for site in windows}
        self.step = 0
        self._left = iter(sites)
        self.seen: set[str] = set()
        paths = dict(self.module.named_modules())
        for site in windows:
            if site in paths and not fused:
                paths[site].register_forward_hook(partial(self._returned, site))

    def run(self, step: int, kwargs: Mapping[str, object]) -> list[torch.Tensor]:
        """Return the tensors that the denoiser returns at a step.

        Raises:
            ValueError: if it doesn't call the attention of a site.
        """
        self.step, self._left, self.seen = step, iter(self.sites), set()
        with torch.no_grad(), self:
            returned = self.module(**pytree.tree_map(_double, dict(kwargs)))
        missed = sorted(self.windows.keys() - self.seen)
        if missed:
            raise ValueError(f"the model doesn't call the attention of {missed[0]}")
        return [leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, torch.Tensor)]

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run a torch function, or a site in the place of an attention."""
        del types
        given = dict(kwargs or {})
        if func is NORM and given.get("dtype") is not None:
            given["dtype"] = torch.float64  # of numbers in fp64, which it must not narrow
        if func is LINEAR:
            return func(*_widened(args), **given)
        if func is not ATTENTION:
            return func(*args, **given)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, args, strict=False)), **given}
        shape = tuple(_heads(given[name]).shape[-2] for name in ("query", "key"))
        site = next((name for name, *tokens in self._left if tuple(tokens) == shape), "")
        if site not in self.windows:
            return func(**given)
        self.seen.add(site)
        return self._site(site, given)

    def _returned(self, site: str, module: object, args: object, output: object) -> object:
        """Share what a module of attention returns, which its gates have a part in."""
        del module, args
        method = self.cells[self.step].get(site, "full")
        if method == "ast":
            return self.states[site].returned
        if "asc" in method:
            output = pytree.tree_map(lambda x: self._both(self._conditional(x), True), output)
        self.states[site].returned = output
        return output

    def _site(self, site: str, given: dict[str, object]) -> Heads:
        method = self.cells[self.step].get(site, "full")
        state = self.states[site]
        if method == "ast":
            assert state.output is not None
            return state.output
        shares = "asc" in method
        parts = [_heads(given[name]) for name in ("query", "key", "value")]
        if shares:
            parts = [self._conditional(part) for part in parts]
        mask = self._visible(site, parts[0].shape[-2])
        scale = given.get("scale")
        factor = float(scale) if isinstance(scale, int | float) else parts[0].shape[-1] ** -0.5
        bias = given.get("attn_mask")
        if shares and isinstance(bias, torch.Tensor) and bias.dim() > 2 and len(bias) > 1:
            bias = self._conditional(bias)
        windowed = _attend(parts, mask, factor, bias)
        if "wa-rs" in method:
            assert state.residual is not None
            kept = self._conditional(state.residual) if shares else state.residual
            output = windowed + kept
        else:
            output = _attend(parts, torch.ones_like(mask), factor, bias)
            state.residual = self._both(output - windowed, shares)
        state.output = self._both(output, shares)
        return state.output

    def _visible(self, site: str, tokens: int) -> torch.Tensor:
        window = self.windows[site]
        if isinstance(window, torch.Tensor):
            return window
        return arrow_mask(tokens, window, self.texts.get(site, (0, 0)))

    def _conditional(self, x: Heads) -> Heads:
        first, second = x.chunk(2)
        return first if self.cfg == "cond-first" else second

    def _both(self, x: Heads, shared: bool) -> Heads:
        return torch.cat([x, x]) if shared else x


def _attend(parts: Sequence[Heads], mask: torch.Tensor, scale: float, bias: object) -> Heads:
    """Attend under a mask, and under what the model masks or adds to the scores."""
    query, key, value = parts
    groups = query.shape[-3] // key.shape[-3] if query.dim() > 3 else 1
    if groups > 1:
        key, value = (
            torch.cat(
                [part[..., h : h + 1, :, :] for h in range(part.shape[-3]) for _ in range(groups)],
                dim=-3,
            )
            for part in (key, value)
        )
    scores = torch.einsum("...qd,...kd->...qk", query, key) * scale
    if isinstance(bias, torch.Tensor) and bias.dtype is torch.bool:
        scores = scores + (~bias) * HIDDEN
    elif isinstance(bias, torch.Tensor):
        scores = scores + bias
    weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)
    return torch.einsum("...qk,...kd->...qd", weights, value)


def _heads(value: object) -> Heads:
    assert isinstance(value, torch.Tensor)
    return value


def _widened(args: tuple[object, ...]) -> tuple[object, ...]:
    """Return a projection's arguments, what the model itself narrowed as wide as the weight."""
    value, weight, *more = args
    assert isinstance(value, torch.Tensor)
    assert isinstance(weight, torch.Tensor)
    return (value.to(weight.dtype), weight, *more)


def _double(leaf: object) -> object:
    if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
        return leaf.double()
    return leaf
