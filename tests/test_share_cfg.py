"""share-cfg: x → site → y   becomes   conditional half of x → site → y, y."""

import pytest
import torch
from torch import nn

from ditc.passes import Plan, Program, TorchSession, Window, capture, schedule
from ditc.passes.keep_slots import KeepSlots
from ditc.passes.share_cfg import ShareCfg
from ditc.passes.verify import verify_values
from ditc.runtime.errors import PassError

from . import models
from .golden import changes, rewritten, site_of
from .samples import LAYOUTS, sample

GOLDEN = """\
+ slice_tensor = slice.Tensor(add, 0, 2, 4) [2, 25, 16]
- linear_1 = linear(add, attentions_0_to_q_weight, attentions_0_to_q_bias) [4, 25, 16]
+ linear_1 = linear(slice_tensor, attentions_0_to_q_weight, attentions_0_to_q_bias) [2, 25, 16]
- view = reshape(linear_1, [4, 25, 2, -1]) [4, 25, 2, 8]
+ view = reshape(linear_1, [2, 25, 2, -1]) [2, 25, 2, 8]
- transpose = transpose.int(view, 1, 2) [4, 2, 25, 8]
+ transpose = transpose.int(view, 1, 2) [2, 2, 25, 8]
- linear_2 = linear(add, attentions_0_to_k_weight, attentions_0_to_k_bias) [4, 25, 16]
+ linear_2 = linear(slice_tensor, attentions_0_to_k_weight, attentions_0_to_k_bias) [2, 25, 16]
- view_1 = reshape(linear_2, [4, 25, 2, -1]) [4, 25, 2, 8]
+ view_1 = reshape(linear_2, [2, 25, 2, -1]) [2, 25, 2, 8]
- transpose_1 = transpose.int(view_1, 1, 2) [4, 2, 25, 8]
+ transpose_1 = transpose.int(view_1, 1, 2) [2, 2, 25, 8]
- linear_3 = linear(add, attentions_0_to_v_weight, attentions_0_to_v_bias) [4, 25, 16]
+ linear_3 = linear(slice_tensor, attentions_0_to_v_weight, attentions_0_to_v_bias) [2, 25, 16]
- view_2 = reshape(linear_3, [4, 25, 2, -1]) [4, 25, 2, 8]
+ view_2 = reshape(linear_3, [2, 25, 2, -1]) [2, 25, 2, 8]
- transpose_2 = transpose.int(view_2, 1, 2) [4, 2, 25, 8]
+ transpose_2 = transpose.int(view_2, 1, 2) [2, 2, 25, 8]
- scaled_dot_product_attention = scaled_dot_product_attention(transpose, transpose_1, \
transpose_2) [4, 2, 25, 8]
+ scaled_dot_product_attention = scaled_dot_product_attention(transpose, transpose_1, \
transpose_2) [2, 2, 25, 8]
- transpose_3 = transpose.int(scaled_dot_product_attention, 1, 2) [4, 25, 2, 8]
+ transpose_3 = transpose.int(scaled_dot_product_attention, 1, 2) [2, 25, 2, 8]
- reshape = reshape(transpose_3, [4, 25, 16]) [4, 25, 16]
+ reshape = reshape(transpose_3, [2, 25, 16]) [2, 25, 16]
- linear_4 = linear(reshape, attentions_0_to_out_weight, attentions_0_to_out_bias) [4, 25, 16]
+ linear_4 = linear(reshape, attentions_0_to_out_weight, attentions_0_to_out_bias) [2, 25, 16]
+ cat_default = cat([linear_4, linear_4]) [4, 25, 16]
- add_1 = add.Tensor(add, linear_4) [4, 25, 16]
+ add_1 = add.Tensor(add, cat_default) [4, 25, 16]"""


def test_golden_graph() -> None:
    program = sample("small", "uncond-first").program
    module, changed = rewritten(program, ShareCfg((site_of(program),), "uncond-first", "x"))
    assert changes(program.graph_module.graph, module.graph) == GOLDEN
    assert changed == {"share-cfg": 1}
    verify_values(module)


@pytest.mark.parametrize("cfg", LAYOUTS)
def test_value_is_the_conditional_halfs_output_twice(cfg: str) -> None:
    model = sample("small", cfg)
    module, _ = rewritten(model.program, ShareCfg((site_of(model.program),), cfg, "x"))
    chosen = slice(0, 2) if cfg == "cond-first" else slice(2, 4)
    handle = model.module.attentions[0].register_forward_hook(
        lambda _, __, output: output[chosen].repeat(2, 1, 1)
    )
    with torch.no_grad():
        expected = model.module(**model.kwargs(1))
        handle.remove()
        (found,) = module(*model.program.bind(model.kwargs(1)))
    # fp32: a product over half the rows may be blocked otherwise.
    assert (found - expected).abs().max() <= 1e-5


def test_a_residual_kept_at_a_shared_step_serves_both_halves() -> None:
    program = sample("merged-heads", "cond-first").program
    site = site_of(program)
    keep = KeepSlots((site,), (site,), {site.name: Window(3)})
    module, _ = rewritten(program, keep, ShareCfg((site,), "cond-first", "x"))
    _, output, residual = module(*program.bind(models.plain_kwargs(1)))
    assert (output.shape, residual.shape) == ((4, 25, 16), (8, 25, 8))
    assert torch.equal(output[:2], output[2:])
    assert torch.equal(residual[:4], residual[4:])


def test_the_empty_bias_of_a_written_out_product_is_halved_too() -> None:
    program = sample("merged-heads", "cond-first").program
    module, _ = rewritten(program, ShareCfg((site_of(program),), "cond-first", "x"))
    (product, _) = [node for node in module.graph.nodes if "baddbmm" in node.name]
    assert [tuple(arg.meta["val"].shape) for arg in product.args] == [
        (4, 25, 25),
        (4, 25, 8),
        (4, 8, 25),
    ]


def session(program: Program, method: str) -> TorchSession:
    return TorchSession(schedule(program, Plan.uniform(program, 3, method)))


@pytest.mark.parametrize("method", ["asc", "wa-rs+asc"])
def test_attention_straight_behind_attention(method: str) -> None:
    """What one site repeats for both halves is what the next one halves."""
    module = models.stacked()
    program = capture(module, models.plain_kwargs(), cfg="cond-first")
    running = session(program, method)
    first = running(0, **models.plain_kwargs(0))
    shared = running(1, **models.plain_kwargs(0))
    assert torch.equal(shared[:2], shared[2:])
    # The same inputs as at step 0: the conditional half is as it was without sharing.
    assert (shared[:2] - first[:2]).abs().max() <= 1e-5


class TokensFirst(nn.Module):
    """`[tokens, batch, width]`, as in `nn.MultiheadAttention`: the batch is not outermost."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.transpose(0, 1)
        tokens, batch, _ = y.shape
        query, key, value = (
            part.reshape(tokens, batch * 2, 8).transpose(0, 1) for part in self.qkv(y).chunk(3, -1)
        )
        out = torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(-1), value)
        return x + self.out(out.transpose(0, 1).reshape(tokens, batch, 16)).transpose(0, 1)


@pytest.mark.parametrize("tokens", [24, 25])
def test_tokens_first_is_refused_not_halved_by_tokens(tokens: int) -> None:
    """A near-miss: 24 tokens split as well as a batch of 4 does, along the wrong axis."""
    kwargs = {"x": models.noise(4, tokens, 16)}
    program = capture(models.randomised(TokensFirst()), kwargs, cfg="cond-first")
    assert program.sites[0].eligible
    with pytest.raises(PassError, match="pass share-cfg: "):
        session(program, "asc")(1, **kwargs)


class Flipping(nn.Module):
    """A site with an operator that nothing is known about."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = models.FusedQkvAttention(16, 2)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.flip(0).unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
        )
        out = nn.functional.scaled_dot_product_attention(query, key, value)
        return x + self.proj(out.transpose(1, 2).flatten(2))


def test_unknown_operators_are_refused_by_name() -> None:
    kwargs = {"x": models.noise(4, 25, 16)}
    program = capture(models.randomised(Flipping()), kwargs, cfg="cond-first")
    with pytest.raises(PassError) as caught:
        session(program, "asc")(1, **kwargs)
    assert str(caught.value) == (
        "pass share-cfg: node flip: it isn't known how aten.flip.default treats the batch, so the "
        "site can't share across CFG: use a method without asc there"
    )


@pytest.mark.parametrize("name", ["small", "merged-heads", "pixart"])
def test_a_second_run_changes_nothing(name: str) -> None:
    program = sample(name, "cond-first").program
    sites = tuple(site for site in program.sites if site.eligible)
    share = ShareCfg(sites, "cond-first", program.latents.name)
    module, changed = rewritten(program, share)
    before = str(module.graph)
    assert changed == {"share-cfg": len(sites)}
    assert share.rewrite(module.graph) == 0
    assert str(module.graph) == before


class Folded(nn.Module):
    """Attention along one of two token axes, the other one merged with the batch."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.attention = models.SdpaAttention(16, 2)
        self.order = order

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        grid = (x * t[:, None, None]).unflatten(1, (5, 5)).permute(*self.order, 3)
        out = self.attention(grid.flatten(0, 1)).unflatten(0, grid.shape[:2])
        back = [self.order.index(axis) for axis in range(3)]
        return x + out.permute(*back, 3).flatten(1, 2)


def twins(seed: int) -> models.Kwargs:
    """Return arguments with equal halves, of which sharing makes nothing else."""
    return {
        name: torch.cat([value.chunk(2)[0]] * 2)  # type: ignore[attr-defined]
        for name, value in models.plain_kwargs(seed).items()
    }


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_axes_merged_behind_the_batch(order: tuple[int, ...]) -> None:
    module = models.randomised(Folded(order))
    program = capture(module, twins(0), cfg="uncond-first")
    session = TorchSession(schedule(program, Plan.uniform(program, 2, "asc")))
    for step in range(2):
        with torch.no_grad():
            assert torch.equal(session(step, **twins(step)), module(**twins(step)))


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1)])
def test_axes_merged_in_front_of_the_batch_are_refused(order: tuple[int, ...]) -> None:
    program = capture(models.randomised(Folded(order)), twins(0), cfg="uncond-first")
    sched = schedule(program, Plan.uniform(program, 2, "asc"))
    with pytest.raises(PassError, match="doesn't hold the halves outermost on its first axis"):
        _ = sched.buckets[1].graph_module


class Rotated(models.SdpaAttention):
    """A table of angles that is expanded to the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = torch.arange(x.shape[1]).cos()[None, :, None].expand(x.shape[0], -1, 1)
        query, key, value = (
            (layer(x) * table).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        out = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(out.transpose(1, 2).flatten(2))


def test_constants_expanded_to_the_batch() -> None:
    module = models.randomised(models.PlainDenoiser(Rotated, layers=1))
    program = capture(module, twins(0), cfg="cond-first")
    session = TorchSession(schedule(program, Plan.uniform(program, 2, "asc")))
    for step in range(2):
        with torch.no_grad():
            assert torch.allclose(session(step, **twins(step)), module(**twins(step)), atol=1e-6)
