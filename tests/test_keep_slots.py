"""keep-slots: x → site → y   becomes   x → site → y, slot write of y or O − W."""

import torch

from ditc.passes import Window, capture
from ditc.passes.keep_slots import KeepSlots
from ditc.passes.verify import verify_values

from . import models
from .golden import changes, rewritten, site_of
from .reference import masked_attention, visible
from .samples import sample

GOLDEN = """\
+ window_attention_default = ditc.window_attention(transpose, transpose_1, transpose_2, 3, 1, \
0.354) [4, 2, 25, 8]
+ sub_tensor = sub.Tensor(scaled_dot_product_attention, window_attention_default) [4, 2, 25, 8]
- return [add_2]
+ return [add_2, linear_4, sub_tensor]"""


def test_golden_graph() -> None:
    program = sample("small", "cond-first").program
    site = site_of(program)
    keep = KeepSlots((site,), (site,), {site.name: Window(3)})
    module, changed = rewritten(program, keep)
    assert changes(program.graph_module.graph, module.graph) == GOLDEN
    assert changed == {"keep-slots": 2}
    verify_values(module)


def test_values_are_output_and_residual() -> None:
    model = sample("small", "cond-first")
    site, kwargs = site_of(model.program), model.kwargs(1)
    module, _ = rewritten(model.program, KeepSlots((site,), (site,), {site.name: Window(4, 2)}))
    attention = model.module.attentions[0]
    entries = []
    with torch.no_grad():
        handle = attention.register_forward_pre_hook(lambda _, args: entries.append(args[0]))
        expected = model.module(**kwargs)
        handle.remove()
        found, output, residual = module(*model.program.bind(kwargs))
        heads = [
            layer(entries[0]).unflatten(-1, (2, 8)).transpose(1, 2)
            for layer in (attention.to_q, attention.to_k, attention.to_v)
        ]
        full = masked_attention(*heads, 8**-0.5, None)
        windowed = masked_attention(*heads, 8**-0.5, visible(25, 4, 2))
        assert torch.equal(found, expected)
        assert torch.equal(output, attention(entries[0]))
        # fp32: two attentions of values about 1 are summed in another order.
        assert (residual - (full - windowed)).abs().max() <= 1e-6


def test_only_named_sites_are_kept_in_the_order_of_outputs_before_residuals() -> None:
    program = sample("dit", "cond-first").program
    first, second, _ = program.sites
    windows = {second.name: Window(3)}
    module, changed = rewritten(program, KeepSlots((first,), (second,), windows))
    outputs = module.graph.output_node().args[0]
    assert [tuple(node.meta["val"].shape) for node in outputs[1:]] == [(4, 25, 24), (4, 3, 25, 8)]
    assert outputs[1].name == first.exits[0]
    assert changed == {"keep-slots": 2}


def test_an_exit_that_is_the_models_output_is_written_all_the_same() -> None:
    """A near-miss: the output is there already, but as the model's, not as a slot's."""
    program = capture(models.stacked(), models.plain_kwargs(), cfg="cond-first")
    keep = KeepSlots((program.sites[1],), (), {})
    module, changed = rewritten(program, keep)
    assert changed == {"keep-slots": 1}
    found, kept = module(*program.bind(models.plain_kwargs()))
    assert torch.equal(found, kept)
    assert keep.rewrite(module.graph) == 0


def test_a_second_run_changes_nothing() -> None:
    program = sample("merged-heads", "cond-first").program
    windows = {site.name: Window(3) for site in program.sites}
    keep = KeepSlots(program.sites, program.sites, windows)
    module, changed = rewritten(program, keep)
    before = str(module.graph)
    assert changed == {"keep-slots": 4}
    assert keep.rewrite(module.graph) == 0
    assert str(module.graph) == before
