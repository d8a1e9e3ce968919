"""split-complex: z   becomes   its real and its imaginary part."""

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from ditc.export.split_complex import SplitComplex
from ditc.passes import capture
from ditc.passes.base import run
from ditc.passes.graphs import copy_module, find
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.verify import verify_values
from ditc.runtime.errors import PassError

from .golden import changes
from .models import noise

Compute = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SHAPE = (2, 3, 5, 8)


class Module(nn.Module):
    """Computes with its input as complex numbers, and with a table of some."""

    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.compute = compute
        self.register_buffer("table", torch.polar(noise(7, 4), noise(7, 4, seed=1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.compute(torch.view_as_complex(x.unflatten(-1, (-1, 2))), self.table)


def split(compute: Compute) -> tuple[fx.GraphModule, fx.GraphModule, int]:
    program = capture(Module(compute).eval(), {"x": noise(*SHAPE)})
    module = copy_module(program.graph_module)
    changed = run((SplitComplex(), RemoveDeadCode()), module)[SplitComplex.name]
    return program.graph_module, module, changed


def rotated(z: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(z * table[None, None, :5]).flatten(-2)


GOLDEN = """\
- view_as_complex = view_as_complex(unflatten) [2, 3, 5, 4]
+ select_int = select.int(unflatten, -1, 0) [2, 3, 5, 4]"""


def test_golden_graph() -> None:
    before, after, changed = split(rotated)
    assert changed == 6
    told = changes(before.graph, after.graph)
    assert told.startswith("- table = ")
    assert GOLDEN.splitlines()[0] in told
    assert GOLDEN.splitlines()[1] in told
    kept = find(after.graph, "view_as_real")
    assert kept is not None
    assert kept.target is torch.ops.aten.stack.default
    assert [line for line in told.splitlines() if "mul.Tensor" in line and line[0] == "+"] != []
    verify_values(after)


def written(z: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Samples are put into their place one by one, as Lumina 2 does."""
    padded = torch.zeros(z.shape, dtype=z.dtype)
    padded[0, :, 1:] = z[1, :, 1:]
    padded[1] = z[0] * table[:5]
    return torch.view_as_real(padded)


CASES: dict[str, Compute] = {
    "written": written,
    "rotation": rotated,
    "indexed": lambda z, table: torch.view_as_real(
        z * torch.cat([table[torch.tensor([4, 0, 6])], table[1:3]])[None, None]
    ),
    "parts": lambda z, table: z.real * 2 - z.imag + z.abs(),
    "polar": lambda z, table: torch.view_as_real(z * torch.polar(z.abs(), z.real)),
    "complex": lambda z, table: torch.view_as_real(torch.complex(z.imag, z.real) * z.conj()),
    "sums": lambda z, table: torch.view_as_real(z + table[:5] - z * z),
    "by a real": lambda z, table: torch.view_as_real((z * z.real) * 0.5),
    "real by it": lambda z, table: torch.view_as_real(z.real * z),
    "moved": lambda z, table: torch.view_as_real(
        torch.stack([part.transpose(1, 2).flatten(1, 2) for part in z.chunk(2, dim=-1)])
        .unsqueeze(0)
        .expand(2, -1, -1, -1, -1)
        .permute(0, 2, 1, 4, 3)
    ),
    "cast": lambda z, table: torch.view_as_real(z.real.to(torch.complex64) * table[:5]),
    "joined": lambda z, table: torch.view_as_real(torch.cat([z, z.real.to(z.dtype)], dim=1)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_complex_numbers(name: str) -> None:
    _, module, changed = split(CASES[name])
    assert changed > 0
    verify_values(module)
    for node in module.graph.nodes:
        value = node.meta.get("val")
        assert not (isinstance(value, torch.Tensor) and value.is_complex())
    given = noise(*SHAPE, seed=5)
    (found,) = module(given)
    expected = Module(CASES[name])(given)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_a_second_run_and_real_graphs_change_nothing() -> None:
    _, module, _ = split(rotated)
    assert run((SplitComplex(),), module)[SplitComplex.name] == 0


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda z, table: torch.view_as_real(torch.fft.fft(z)), "makes complex numbers, which eng"),
        (lambda z, table: torch.view_as_real(z * 1j), r"a product with the complex number 1j"),
        (lambda z, table: z * z, "the graph returns complex numbers"),
        (lambda z, table: z.angle(), "angle.default takes complex numbers, which engines don't"),
    ],
)
def test_what_can_not_be_split_is_refused(compute: Compute, message: str) -> None:
    with pytest.raises(PassError, match=message):
        split(compute)
