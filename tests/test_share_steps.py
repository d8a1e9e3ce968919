"""share-steps: x → site → y   becomes   lookup(slot) → y."""

import torch

from ditc.passes import capture
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.share_steps import ShareSteps
from ditc.passes.verify import verify_values

from . import models
from .golden import changes, rewritten, site_of
from .samples import sample

GOLDEN = """\
+ slot_attentions_0_output = slot attentions.0.output [4, 25, 16]
- attentions_0_to_q_weight = attentions.0.to_q.weight [16, 16]
- attentions_0_to_q_bias = attentions.0.to_q.bias [16]
- attentions_0_to_k_weight = attentions.0.to_k.weight [16, 16]
- attentions_0_to_k_bias = attentions.0.to_k.bias [16]
- attentions_0_to_v_weight = attentions.0.to_v.weight [16, 16]
- attentions_0_to_v_bias = attentions.0.to_v.bias [16]
- attentions_0_to_out_weight = attentions.0.to_out.weight [16, 16]
- attentions_0_to_out_bias = attentions.0.to_out.bias [16]
- linear_1 = linear(add, attentions_0_to_q_weight, attentions_0_to_q_bias) [4, 25, 16]
- view = reshape(linear_1, [4, 25, 2, -1]) [4, 25, 2, 8]
- transpose = transpose.int(view, 1, 2) [4, 2, 25, 8]
- linear_2 = linear(add, attentions_0_to_k_weight, attentions_0_to_k_bias) [4, 25, 16]
- view_1 = reshape(linear_2, [4, 25, 2, -1]) [4, 25, 2, 8]
- transpose_1 = transpose.int(view_1, 1, 2) [4, 2, 25, 8]
- linear_3 = linear(add, attentions_0_to_v_weight, attentions_0_to_v_bias) [4, 25, 16]
- view_2 = reshape(linear_3, [4, 25, 2, -1]) [4, 25, 2, 8]
- transpose_2 = transpose.int(view_2, 1, 2) [4, 2, 25, 8]
- scaled_dot_product_attention = scaled_dot_product_attention(transpose, transpose_1, \
transpose_2) [4, 2, 25, 8]
- transpose_3 = transpose.int(scaled_dot_product_attention, 1, 2) [4, 25, 2, 8]
- reshape = reshape(transpose_3, [4, 25, 16]) [4, 25, 16]
- linear_4 = linear(reshape, attentions_0_to_out_weight, attentions_0_to_out_bias) [4, 25, 16]
- add_1 = add.Tensor(add, linear_4) [4, 25, 16]
+ add_1 = add.Tensor(add, slot_attentions_0_output) [4, 25, 16]"""


def test_golden_graph() -> None:
    program = sample("small", "cond-first").program
    module, changed = rewritten(program, ShareSteps((site_of(program),)), RemoveDeadCode())
    assert changes(program.graph_module.graph, module.graph) == GOLDEN
    # 4 projections, their 8 weights and biases, 6 views, 2 layouts behind, the attention.
    assert changed == {"share-steps": 1, "remove-dead-code": 21}
    verify_values(module)


def test_value_is_the_models_with_the_attention_replaced() -> None:
    model = sample("small", "cond-first")
    kept, kwargs = models.noise(4, 25, 16, seed=3), model.kwargs(1)
    module, _ = rewritten(model.program, ShareSteps((site_of(model.program),)))
    handle = model.module.attentions[0].register_forward_hook(lambda *_: kept)
    with torch.no_grad():
        expected = model.module(**kwargs)
        handle.remove()
        (found,) = module(*model.program.bind(kwargs), kept)
    assert torch.equal(found, expected)


def test_other_sites_and_their_weights_stay() -> None:
    """A near-miss: the layers before and behind, and the cross-attention of the same block."""
    program = sample("pixart", "cond-first").program
    site = site_of(program, 1)
    module, _ = rewritten(program, ShareSteps((site,)), RemoveDeadCode())
    targets = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    gone = {str(node.target) for node in program.graph_module.graph.nodes} - {
        str(node.target) for node in module.graph.nodes
    }
    assert gone == {
        f"{site.name}.{part}.{kind}"
        for part in ("to_q", "to_k", "to_v", "to_out.0")
        for kind in ("weight", "bias")
    }
    assert "transformer_blocks.1.attn2.to_q.weight" in targets


def test_an_exit_that_is_the_models_output() -> None:
    program = capture(models.stacked(), models.plain_kwargs(), cfg="cond-first")
    module, _ = rewritten(program, ShareSteps((program.sites[1],)), RemoveDeadCode())
    kept = models.noise(4, 25, 16, seed=3)
    (found,) = module(*program.bind(models.plain_kwargs()), kept)
    assert torch.equal(found, kept)


def test_a_second_run_changes_nothing() -> None:
    program = sample("dit", "cond-first").program
    share = ShareSteps(program.sites)
    module, changed = rewritten(program, share)
    before = str(module.graph)
    assert changed == {"share-steps": 3}
    assert share.rewrite(module.graph) == 0
    assert str(module.graph) == before
