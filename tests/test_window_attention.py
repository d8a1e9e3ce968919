"""window-attention: attention(q, k, v)   becomes   window_attention(q, k, v) + lookup(R)."""

import torch
from torch import nn

from ditc.passes import Plan, TorchSession, Window, capture, schedule
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.verify import verify_values
from ditc.passes.window_attention import WindowAttention

from . import models
from .golden import changes, rewritten, site_of, text_of
from .reference import Eager
from .samples import sample

GOLDEN = """\
+ slot_attentions_0_residual = slot attentions.0.residual [4, 2, 25, 8]
- scaled_dot_product_attention = scaled_dot_product_attention(transpose, transpose_1, \
transpose_2) [4, 2, 25, 8]
+ window_attention_default = ditc.window_attention(transpose, transpose_1, transpose_2, 6, 2, \
0.354) [4, 2, 25, 8]
+ add_tensor = add.Tensor(window_attention_default, slot_attentions_0_residual) [4, 2, 25, 8]
- transpose_3 = transpose.int(scaled_dot_product_attention, 1, 2) [4, 25, 2, 8]
+ transpose_3 = transpose.int(add_tensor, 1, 2) [4, 25, 2, 8]"""


def test_golden_graph() -> None:
    program = sample("small", "cond-first").program
    site = site_of(program)
    window = WindowAttention((site,), {site.name: Window(6, 2)})
    module, changed = rewritten(program, window, RemoveDeadCode())
    assert changes(program.graph_module.graph, module.graph) == GOLDEN
    assert changed["window-attention"] == 1
    verify_values(module)


def test_values_are_window_and_residual() -> None:
    model = sample("small", "cond-first")
    site = site_of(model.program)
    module, _ = rewritten(model.program, WindowAttention((site,), {site.name: Window(3)}))
    eager = Eager(
        model.module, model.paths(), [{site.name: "wa-rs"}], {site.name: (3, 1)}, "cond-first"
    )
    residual = models.noise(4, 2, 25, 8, seed=5)
    eager.keep(site.name, residual.double())
    (expected,) = eager(0, **model.kwargs(2))
    (found,) = module(*model.program.bind(model.kwargs(2)), residual)
    assert (found - expected).abs().max() / expected.abs().max() <= 1e-6


def test_the_scale_written_into_a_product_is_kept() -> None:
    program = sample("merged-heads", "cond-first").program
    site = site_of(program)
    module, _ = rewritten(program, WindowAttention((site,), {site.name: Window(3)}))
    (line,) = [line for line in text_of(module.graph) if "ditc.window_attention" in line]
    assert line == (
        "window_attention_default = ditc.window_attention(reshape_1, reshape_3, reshape_5, 3, 1, "
        "0.354) [8, 25, 8]"
    )


def test_other_sites_are_left_alone() -> None:
    """A near-miss: the same attention a layer up, and cross-attention beside it."""
    program = sample("pixart", "cond-first").program
    site = site_of(program, 1)
    window = WindowAttention((site,), {site.name: Window(3)})
    module, _ = rewritten(program, window, RemoveDeadCode())
    targets = [str(node.target) for node in module.graph.nodes]
    assert targets.count("ditc.window_attention.default") == 1
    assert targets.count("aten.scaled_dot_product_attention.default") == 3


def test_a_second_run_changes_nothing() -> None:
    program = sample("dit", "cond-first").program
    windows = {site.name: Window(3) for site in program.sites}
    window = WindowAttention(program.sites, windows)
    module, changed = rewritten(program, window)
    before = str(module.graph)
    assert changed == {"window-attention": 3}
    assert window.rewrite(module.graph) == 0
    assert str(module.graph) == before
    with torch.no_grad():
        residuals = [torch.zeros(4, 3, 25, 8)] * 3
        out = module(*program.bind(models.dit_kwargs()), *residuals)
    assert out[0].shape == (4, 3, 10, 10)


class InPlace(nn.Module):
    """A sum in place, for which export decomposes the model: views, that want strides, appear."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = models.SdpaAttention(16, 2)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = x * t[:, None, None]
        x += self.attention(x)
        return x


def test_windows_in_a_model_that_adds_in_place() -> None:
    module = models.randomised(InPlace())
    program = capture(module, models.plain_kwargs())
    session = TorchSession(schedule(program, Plan.uniform(program, 2, "wa-rs")))
    for step in range(2):  # equal inputs: window plus residual is full attention
        with torch.no_grad():
            expected = module(**models.plain_kwargs())
        assert torch.allclose(session(step, **models.plain_kwargs()), expected, atol=1e-6)
