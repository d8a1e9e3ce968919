"""Where operators put the batch: half of what they take makes half of what they give."""

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from ditc.passes.batch_moves import asked, carriers, indifferent, moved
from ditc.passes.halving import write_half
from ditc.runtime.errors import PassError

from . import models

Function = Callable[[torch.Tensor], torch.Tensor]
BATCH = 4


class _Of(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def traced(function: Function, x: torch.Tensor) -> tuple[fx.GraphModule, fx.Node]:
    """Return a module of a function and the last node that computes anything."""
    module = torch.export.export(_Of(function), (x,)).graph_module
    (*_, node) = (n for n in module.graph.nodes if n.op == "call_function")
    return module, node


MOVES = {
    "repeat": (lambda x: x.repeat(1, 3, 1, 1), 0),
    "repeat in front": (lambda x: x.repeat(2, 1, 1, 1, 1), 1),
    "repeat_interleave": (lambda x: x.repeat_interleave(3, 0), 0),
    "unflatten": (lambda x: x.unflatten(0, (4, -1)), 0),
    "flatten behind one": (lambda x: x[None].flatten(0, 1), 0),
    "view behind one": (lambda x: x[None].view(4, -1), 0),
    "transpose": (lambda x: x.transpose(0, 2), 2),
    "stack": (lambda x: torch.stack([x, x], 0), 1),
    "embedding": (
        lambda x: nn.functional.embedding((x.abs() * 2).int().clamp(0, 3), torch.eye(4)),
        0,
    ),
    "index_copy": (lambda x: x.index_copy(1, torch.arange(2, 3), x[:, :1]), 0),
    "select_scatter": (lambda x: x.select_scatter(x[:, 0], 1, 2), 0),
    "copy": (lambda x: torch.ops.aten.copy(x, x), 0),
    "matmul of a table": (lambda x: torch.matmul(torch.eye(6), x), 0),
    "softmax along another axis": (lambda x: x.softmax(1), 0),
    "pad along another axis": (lambda x: nn.functional.pad(x, (0, 0, 1, 2)), 0),
    "einsum that rearranges": (lambda x: torch.einsum("nhwc->chnw", x), 2),
    "einsum with a table": (lambda x: torch.einsum("hk, nhwc -> nkwc", torch.eye(6), x), 0),
    "expand": (lambda x: x[:, :1].expand(4, 6, 6, 5), 0),
}


@pytest.mark.parametrize("name", MOVES)
def test_half_of_the_batch_makes_half_of_the_value(name: str) -> None:
    function, expected = MOVES[name]
    x = models.noise(BATCH, 6, 6, 5)
    module, node = traced(function, x)
    known = [arg for arg in carriers(node) if tuple(arg.meta["val"].shape).count(BATCH) == 1]
    before = tuple(known[-1].meta["val"].shape).index(BATCH)
    assert moved(node, known[-1], before, BATCH) == expected
    assert asked(node, known[-1], expected) == before
    (whole,) = module(x)
    write_half(node, expected)
    module.recompile()
    assert torch.equal(module(x[2:])[0], whole.chunk(2, expected)[1])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x.repeat(2, 1, 1, 1), "the batch is repeated"),
        (lambda x: x.mean(0), "reduces the batch"),
        (lambda x: x.transpose(0, 1).flatten(0, 1), "not outermost"),
        (lambda x: x.unflatten(0, (2, 2)), "the axis that holds the batch is split"),
        (lambda x: x.flip(0), "it isn't known how aten.flip.default treats the batch"),
        (lambda x: x.select(0, 1), "works along the batch"),
        (lambda x: x.softmax(0), "works along the batch"),
        (lambda x: nn.functional.pad(x, (0, 0, 0, 0, 0, 0, 1, -1)), "pads the batch"),
        (lambda x: torch.einsum("nhwc->hwc", x), "sums over the batch"),
        (lambda x: torch.einsum("nhwc,nhwc->hw", x, x), "sums over the batch"),
        (lambda x: torch.einsum("nhwc,hnwc->nhwc", *[x[:, :4]] * 2), "sums over the batch"),
        (lambda x: torch.einsum("n...->n...", x), "it isn't known where einsum"),
    ],
)
def test_what_mixes_or_loses_the_batch_is_refused(function: Function, words: str) -> None:
    _, node = traced(function, models.noise(BATCH, 6, 6, 5))
    source = node.all_input_nodes[0]
    with pytest.raises(PassError, match=words):
        moved(node, source, tuple(source.meta["val"].shape).index(BATCH), BATCH)


def test_what_is_broadcast_is_asked_whole() -> None:
    _, node = traced(lambda x: x * torch.ones(6, 1, 5), models.noise(BATCH, 6, 6, 5))
    x, table = carriers(node)
    assert (asked(node, x, 0), asked(node, table, 0), asked(node, table, 1)) == (0, None, 0)


def test_what_is_made_like_another_value_takes_none_of_its_values() -> None:
    module, node = traced(lambda x: torch.eye(5).type_as(x), models.noise(BATCH, 6, 6, 5))
    (x,) = module.graph.find_nodes(op="placeholder")
    assert indifferent(node, x)
    assert carriers(node) == [arg for arg in node.all_input_nodes if arg is not x]
