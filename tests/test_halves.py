"""What a site needs of its entries for one half of the batch."""

import pytest
import torch
from torch import nn

from ditc.passes import Plan, Program, TorchSession, capture, schedule
from ditc.passes.batch_following import follow_batch
from ditc.passes.halves import Halves, halves_of
from ditc.passes.sites import region
from ditc.runtime.errors import PassError

from . import models


class Turned(nn.Module):
    """Attention whose queries are turned by an angle for each sample, and one for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(16, 16), nn.Linear(16, 16)
        self.to_v, self.to_out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(
        self, x: torch.Tensor, own: torch.Tensor, shared: torch.Tensor, kinds: torch.Tensor
    ) -> torch.Tensor:
        sizes = torch.stack([torch.full((25, 16), float(number)) for number in range(4)])
        query = self.to_q(x) * own + shared[kinds].sum()
        heads = [
            part.unflatten(2, (2, 8)).transpose(1, 2)
            for part in (query, self.to_k(x) * sizes, self.to_v(x))
        ]
        out = nn.functional.scaled_dot_product_attention(*heads)
        return x + self.to_out(out.transpose(1, 2).flatten(2))


def arguments(seed: int) -> models.Kwargs:
    """`shared` has as many rows as there are samples, but is no batch."""
    return {
        "x": models.noise(4, 25, 16, seed=seed),
        "own": models.noise(4, 25, 16, seed=7),
        "shared": models.noise(4, 25, 16, seed=8),
        "kinds": torch.tensor([0, 3]),
    }


def captured() -> tuple[nn.Module, Program]:
    module = models.randomised(Turned())
    return module, capture(module, arguments(0), cfg="uncond-first", latents="x")


def halves(program: Program) -> Halves:
    graph = program.graph_module.graph
    (latents,) = (node for node in graph.nodes if node.name == "x")
    (site,) = program.sites
    inside = region(graph, site.projections, site.exits)
    return halves_of(site, inside, follow_batch(graph, latents, 4))


def test_what_is_of_samples_is_sliced_and_what_only_looks_like_it_is_not() -> None:
    _, program = captured()
    found = halves(program)
    entries = {(entry.name, axis) for entry, axis in found.entries}
    assert {("x", 0), ("own", 0), ("stack", 0)} <= entries
    assert "shared" not in {name for name, _ in entries}
    assert all(axis == 0 for axis in found.axes.values())


def test_the_conditional_half_is_computed_of_its_own_entries() -> None:
    module, program = captured()
    session = TorchSession(schedule(program, Plan.uniform(program, 2, "asc")))
    session(0, **arguments(0))
    given = arguments(1)
    with torch.no_grad():
        whole = module(**given) - given["x"]
    expected = given["x"] + whole[2:].repeat(2, 1, 1)
    assert (session(1, **given) - expected).abs().max() <= 1e-5 * expected.abs().max()


class Centred(Turned):
    """What is attended from is less its mean over all samples."""

    def forward(
        self, x: torch.Tensor, own: torch.Tensor, shared: torch.Tensor, kinds: torch.Tensor
    ) -> torch.Tensor:
        del own, shared, kinds
        query = self.to_q(x)
        heads = [
            part.unflatten(2, (2, 8)).transpose(1, 2)
            for part in (query - query.mean(0, keepdim=True), self.to_k(x), self.to_v(x))
        ]
        out = nn.functional.scaled_dot_product_attention(*heads)
        return x + self.to_out(out.transpose(1, 2).flatten(2))


def test_samples_that_are_mixed_inside_a_site_are_refused() -> None:
    module = models.randomised(Centred())
    program = capture(module, arguments(0), cfg="uncond-first", latents="x")
    with pytest.raises(PassError, match=r"aten\.mean\.dim reduces the batch"):
        halves(program)
