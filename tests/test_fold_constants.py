"""fold-constants: exp(arange(n) * c)   becomes   a weight that holds its value."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from ditc.export import compile as compile_bundle
from ditc.export.fold_constants import FoldConstants
from ditc.passes import Plan, TorchSession, capture, schedule
from ditc.passes.base import run
from ditc.passes.verify import verify_values
from ditc.runtime import Bundle

from . import models
from .golden import changes, rewritten
from .traced import traced

GOLDEN = """\
+ constant_4_{digest} = constant_4_{digest} [4]
- mul_1 = mul.Tensor(unsqueeze, exp) [2, 4]
+ mul_1 = mul.Tensor(unsqueeze, constant_4_{digest}) [2, 4]"""


class Frequencies(nn.Module):
    """A table of frequencies; noise and a mask over all pairs have to stay."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        table = (torch.arange(4) * -2.3).exp()
        return x * (t[:, None] * table).sin()[:, None]


class Kept(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x + t[:, None, None] * torch.ones(300, 300).tril().sum() + torch.rand(1)


def test_golden_graph() -> None:
    program = traced(Frequencies())
    module, changed = rewritten(program, FoldConstants())
    (folded,) = [name for name, _ in module.named_buffers() if name.startswith("constant_4_")]
    found = changes(program.graph_module.graph, module.graph)
    assert found == GOLDEN.format(digest=folded.removeprefix("constant_4_"))
    assert changed == {"fold-constants": 1}
    verify_values(module)


def test_values_stay_to_the_bit() -> None:
    module, _ = rewritten(traced(Frequencies()), FoldConstants())
    x, t = models.noise(2, 5, 4), torch.tensor([500.0, 999.0])
    assert torch.equal(module(x, t)[0], Frequencies()(x, t))


def test_large_values_and_noise_are_left() -> None:
    module, _ = rewritten(traced(Kept()), FoldConstants())
    targets = {str(node.target) for node in module.graph.nodes}
    assert {"aten.tril.default", "aten.rand.default"} <= targets


def test_a_second_run_changes_nothing() -> None:
    module, _ = rewritten(traced(Frequencies()), FoldConstants())
    assert run((FoldConstants(),), module) == {"fold-constants": 0}


def test_timesteps_of_a_thousand(tmp_path: Path) -> None:
    """Sines of large arguments: an engine's own table is off by 2e-4 here."""
    program = capture(models.dit(2, seed=204), models.dit_kwargs(), "cond-first")
    sched = schedule(program, Plan.uniform(program, 1, "full"))
    bundle = Bundle.open(compile_bundle(sched, tmp_path / "bundle"), threads=1)
    session = TorchSession(sched)
    for seed in range(10):
        kwargs = models.dit_kwargs(seed)
        expected = session(0, **kwargs).sample.numpy()
        found = bundle.step(0, **{name: value.numpy() for name, value in kwargs.items()})
        assert np.abs(found - expected).max() < 5e-5  # outputs of up to 5
