"""lower-windows: window_attention(q, k, v)   becomes   dense attention, block by block."""

from functools import lru_cache

import pytest
import torch
from torch import nn

from ditc.export.lower_windows import LowerWindows
from ditc.passes import Program, Window, capture
from ditc.passes.base import run
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.verify import verify_values
from ditc.passes.window_attention import WindowAttention

from . import models
from .golden import changes, rewritten, site_of, text_of
from .reference import Eager
from .samples import Sample, sample

GOLDEN = """\
- window_attention_default = ditc.window_attention(transpose, transpose_1, transpose_2, 3, 1, \
0.354) [4, 2, 25, 8]
+ split_with_sizes = split_with_sizes(transpose, [25], 2) 1 tensors
+ getitem = <built-in function getitem>(split_with_sizes, 0) [4, 2, 25, 8]
+ reshape_1 = reshape(getitem, [4, 2, 25, 8]) [4, 2, 25, 8]
+ reshape_2 = reshape(transpose_1, [4, 2, 25, 8]) [4, 2, 25, 8]
+ reshape_3 = reshape(transpose_2, [4, 2, 25, 8]) [4, 2, 25, 8]
+ constant_25x25_38b8aabd1be5 = constant_25x25_38b8aabd1be5 [25, 25]
+ scaled_dot_product_attention_1 = scaled_dot_product_attention(reshape_1, reshape_2, reshape_3, \
constant_25x25_38b8aabd1be5, scale=0.354) [4, 2, 25, 8]
+ reshape_4 = reshape(scaled_dot_product_attention_1, [4, 2, 25, 8]) [4, 2, 25, 8]
+ cat = cat([reshape_4], 2) [4, 2, 25, 8]
- add_tensor = add.Tensor(window_attention_default, slot_attentions_0_residual) [4, 2, 25, 8]
+ add_tensor = add.Tensor(cat, slot_attentions_0_residual) [4, 2, 25, 8]"""
TOKENS = 200
"""Enough for four blocks of queries."""
TOKENS_SHORT = models.TOKENS


@lru_cache
def long(name: str) -> Sample:
    module = {"small": models.small, "merged-heads": models.merged_heads}[name]()
    kwargs = models.plain_kwargs(tokens=TOKENS)
    return Sample(name, module, capture(module, kwargs, cfg="cond-first"))


def windowed(program: Program, window: Window, *sites: int) -> WindowAttention:
    chosen = tuple(site_of(program, index) for index in sites)
    return WindowAttention(chosen, {site.name: window for site in chosen})


def test_golden_graph() -> None:
    program = sample("small", "cond-first").program
    before, _ = rewritten(program, windowed(program, Window(3), 0), RemoveDeadCode())
    after, changed = rewritten(
        program, windowed(program, Window(3), 0), RemoveDeadCode(), LowerWindows()
    )
    assert changes(before.graph, after.graph) == GOLDEN
    assert changed["lower-windows"] == 1
    verify_values(after)


@pytest.mark.parametrize("window", [Window(20), Window(24, 8)], ids=["band", "block"])
@pytest.mark.parametrize("name", ["small", "merged-heads"])
def test_values_are_those_of_the_method(name: str, window: Window) -> None:
    model = long(name)
    site = site_of(model.program)
    module, _ = rewritten(
        model.program, windowed(model.program, window, 0), LowerWindows(), RemoveDeadCode()
    )
    size = (window.radius, window.block)
    eager = Eager(
        model.module,
        model.paths(),
        [{site.name: "wa-rs"}],
        dict.fromkeys(model.sites, size),
        "cond-first",
    )
    kwargs = models.plain_kwargs(seed=2, tokens=TOKENS)
    heads = models.noise(4, 2, TOKENS, 8, seed=5)
    eager.keep(site.name, heads.double())
    (expected,) = eager(0, **kwargs)
    slot = module.graph.find_nodes(op="placeholder")[-1].meta["val"].shape
    (found,) = module(*model.program.bind(kwargs), heads.reshape(slot))
    assert (found - expected).abs().max() / expected.abs().max() <= 1e-5


def test_what_is_left_is_standard() -> None:
    program = long("small").program
    module, _ = rewritten(program, windowed(program, Window(20), 0), LowerWindows())
    lines = text_of(module.graph)
    assert not [line for line in lines if "ditc." in line]
    assert sum("scaled_dot_product_attention(" in line for line in lines) > 2


def test_full_attention_is_left_alone() -> None:
    """A near-miss: attention of the same shapes a layer up isn't windowed."""
    program = long("merged-heads").program
    module, changed = rewritten(program, windowed(program, Window(20), 1), LowerWindows())
    assert changed["lower-windows"] == 1
    softmax = [line for line in text_of(module.graph) if " softmax.int(" in line]
    assert len(softmax) == 2  # the one behind it is dead code, which another pass removes


def test_a_second_run_changes_nothing() -> None:
    program = sample("small", "cond-first").program
    module, _ = rewritten(program, windowed(program, Window(3), 0), LowerWindows())
    before = text_of(module.graph)
    assert run((LowerWindows(),), module) == {"lower-windows": 0}
    assert text_of(module.graph) == before


def test_masks_are_weights_that_sites_share() -> None:
    """Engines would compute a mask at load, for every session anew."""
    program = sample("fused-qkv", "cond-first").program
    module, changed = rewritten(program, windowed(program, Window(3), 0, 1), LowerWindows())
    nodes = module.graph.find_nodes(op="get_attr")
    masks = [str(node.target) for node in nodes if "constant_" in str(node.target)]
    assert changed["lower-windows"] == 2
    assert len(masks) == 2
    assert len(set(masks)) == 1
    seen = (torch.arange(TOKENS_SHORT)[:, None] - torch.arange(TOKENS_SHORT)).abs() <= 3
    assert torch.equal(module.get_buffer(masks[0]) == 0, seen)


class OneProjection(nn.Module):
    """Queries, keys and values are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.to_all, self.to_out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        heads = self.to_all(x + t[:, None, None]).unflatten(-1, (2, 8)).transpose(1, 2)
        out = nn.functional.scaled_dot_product_attention(heads, heads, heads)
        return self.to_out(out.transpose(1, 2).flatten(2))


def test_query_key_and_value_may_be_one() -> None:
    program = capture(models.randomised(OneProjection()), models.plain_kwargs(), cfg=None)
    window = windowed(program, Window(3), 0)
    before, _ = rewritten(program, window)
    after, changed = rewritten(program, window, LowerWindows())
    values = [*program.bind(models.plain_kwargs(1)), torch.zeros(4, 2, TOKENS_SHORT, 8)]
    expected, found = before(*values)[0], after(*values)[0]
    assert changed["lower-windows"] == 1
    assert (found - expected).abs().max() / expected.abs().max() <= 1e-6
