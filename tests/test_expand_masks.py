"""expand-masks: attention(q, k, v, mask of one row)   becomes   one of a row for each query."""

import torch
from torch import nn

from ditc.export.expand_masks import ExpandMasks
from ditc.passes.base import run
from ditc.passes.verify import verify_values

from .golden import changes, rewritten, text_of
from .models import noise, randomised
from .samples import sample
from .traced import traced

GOLDEN = """\
+ expand_default = expand(unsqueeze_1, [1, 5, 5]) [1, 5, 5]
- scaled_dot_product_attention = scaled_dot_product_attention(x, x, x, unsqueeze_1) [2, 5, 4]
+ scaled_dot_product_attention = scaled_dot_product_attention(x, x, x, expand_default) [2, 5, 4]"""
HIDDEN = torch.tensor([0.0, 0.0, -1e4, 0.0, -1e4])


class Masked(nn.Module):
    """Attention that hides the same keys from every query, then some from each."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Parameter(HIDDEN)
        self.pairs = nn.Parameter(torch.zeros(5, 5))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        attend = nn.functional.scaled_dot_product_attention
        rows = attend(x, x, x, self.hidden[None, None])
        return rows + attend(x, x, x, self.pairs) + t[:, None, None]


def test_golden_graph() -> None:
    """The mask with a row for each query is the near-miss: it stays."""
    program = traced(Masked())
    module, changed = rewritten(program, ExpandMasks())
    assert changes(program.graph_module.graph, module.graph) == GOLDEN
    assert changed == {"expand-masks": 1}
    verify_values(module)


def test_values_stay() -> None:
    body = randomised(Masked())
    module, _ = rewritten(traced(body), ExpandMasks())
    x, t = noise(2, 5, 4), torch.ones(2)
    with torch.no_grad():
        assert (module(x, t)[0] - body(x, t)).abs().max() <= 1e-6


def test_cross_attention_over_padded_text() -> None:
    program = sample("pixart", "cond-first").program
    module, changed = rewritten(program, ExpandMasks())
    assert changed == {"expand-masks": 2}
    expanded = [line for line in text_of(module.graph) if " expand(" in line]
    assert all(line.endswith("[4, 3, 25, 7]") for line in expanded[-2:])


def test_a_second_run_changes_nothing() -> None:
    module, _ = rewritten(traced(Masked()), ExpandMasks())
    assert run((ExpandMasks(),), module) == {"expand-masks": 0}
