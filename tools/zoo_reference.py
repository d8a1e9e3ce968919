"""The five methods in eager torch, for any model: every attention that it calls is intercepted.

Independent of the passes: the model's own code runs, in fp64 as far as it stays there; windows are
masks over full attention; the latest output and residual are kept always, needed or not. Attention
that a model writes out is a softmax that is multiplied with something.
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
SOFTMAX = frozenset({torch.Tensor.softmax, torch.softmax, functional.softmax})
PRODUCTS = frozenset({torch.Tensor.__matmul__, torch.Tensor.matmul, torch.matmul, torch.bmm})
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
        self._scores: list[tuple[object, Heads]] = []
        paths = dict(self.module.named_modules())
        for site in windows:
            if site in paths and not fused:
                paths[site].register_forward_hook(partial(self._returned, site))

    def run(self, step: int, kwargs: Mapping[str, object]) -> list[torch.Tensor]:
        """Return the tensors that the denoiser returns at a step.

        Raises:
            ValueError: if it doesn't call the attention of a site.
        """
        self.step, self._left, self.seen, self._scores = step, iter(self.sites), set(), []
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
        if func in SOFTMAX:
            self._scores.append((func(*args, **given), _heads(args[0])))
            return self._scores[-1][0]
        if func in PRODUCTS:
            return self._product(func, _heads(args[0]), _heads(args[1]))
        if func is not ATTENTION:
            return func(*args, **given)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, args, strict=False)), **given}
        site = self._next(*(_heads(given[name]).shape[-2] for name in ("query", "key")))
        if site not in self.windows:
            return func(**given)
        return self._site(site, _scores(given), _heads(given["value"]))

    def _product(self, func: Callable[..., object], first: Heads, second: Heads) -> object:
        scores = next((scores for made, scores in self._scores if made is first), None)
        site = "" if scores is None else self._next(*scores.shape[-2:])
        if scores is None or site not in self.windows:
            return func(first, second)
        return self._site(site, scores, second)

    def _next(self, queries: int, keys: int) -> str:
        """Return the next site of that many queries and keys."""
        site = next((name for name, *sizes in self._left if sizes == [queries, keys]), "")
        self.seen.add(site)
        return site

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

    def _site(self, site: str, scores: torch.Tensor, value: Heads) -> Heads:
        method = self.cells[self.step].get(site, "full")
        state = self.states[site]
        if method == "ast":
            assert state.output is not None
            return state.output
        shares = "asc" in method
        if shares:
            scores, value = self._conditional(scores), self._conditional(value)
        windowed = _attend(scores, value, self._visible(site, scores.shape[-2]))
        if "wa-rs" in method:
            assert state.residual is not None
            kept = self._conditional(state.residual) if shares else state.residual
            output = windowed + kept
        else:
            output = _attend(scores, value, torch.ones_like(scores, dtype=torch.bool))
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


def _scores(given: Mapping[str, object]) -> torch.Tensor:
    """Return scaled scores of query and key, and what the model hides or adds among them."""
    query, key = _heads(given["query"]), _grouped(_heads(given["key"]), _heads(given["query"]))
    scale, bias = given.get("scale"), given.get("attn_mask")
    factor = float(scale) if isinstance(scale, int | float) else query.shape[-1] ** -0.5
    scores = torch.einsum("...qd,...kd->...qk", query, key) * factor
    if isinstance(bias, torch.Tensor) and bias.dtype is torch.bool:
        return scores + (~bias) * HIDDEN
    return scores + bias if isinstance(bias, torch.Tensor) else scores


def _attend(scores: torch.Tensor, value: Heads, mask: torch.Tensor) -> Heads:
    """Attend where a mask shows keys."""
    weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)
    return torch.einsum("...qk,...kd->...qd", weights, _grouped(value, scores))


def _grouped(part: Heads, like: torch.Tensor) -> Heads:
    """Return keys or values with each head as often as query heads share it."""
    groups = like.shape[-3] // part.shape[-3] if like.dim() > 3 else 1
    heads = [part[..., h : h + 1, :, :] for h in range(part.shape[-3]) for _ in range(groups)]
    return torch.cat(heads, dim=-3) if groups > 1 else part


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
