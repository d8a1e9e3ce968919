"""The local search, against the same by its definition."""

import numpy as np
import pytest
import torch

from ditc.passes import Method
from ditc.tools.search import find
from ditc.tools.space import space_of

from .plain_search import ORDER, SCALE, STEPS, Cells, PlainRun, as_text, flow, searched
from .samples import Sample, sample


def loss_of(reference: torch.Tensor, output: torch.Tensor) -> float:
    exact, found = reference.numpy().astype(np.float64), output.numpy().astype(np.float64)
    return float(np.sum((found - exact) ** 2) / (exact.size * np.var(exact)))


def plain_local(model: Sample, threshold: float, seed: int) -> Cells:
    def decide(run: PlainRun, step: int) -> None:
        for number, site in enumerate(run.windows):
            reference = run.site_output(step, site)
            for method in (*ORDER, "full"):
                run.cells[step][site] = method
                limit = threshold * (number + 1) / len(run.windows)
                if loss_of(reference, run.site_output(step, site)) < limit:
                    break

    return searched(model, seed, decide)


@pytest.mark.parametrize("cfg", ["cond-first", "uncond-first"])
def test_decides_by_the_sites_own_output(cfg: str) -> None:
    model = sample("dit", cfg)
    space, used = space_of(model.program), set()
    for threshold in (0.3, 0.7, 1.2):
        found = find("local", space, flow(), threshold, guidance_scale=SCALE, seed=3)
        assert as_text(found.plan) == plain_local(model, threshold, seed=3)
        used |= {method for row in found.plan.cells for method in row.values()}
        assert found.multiply_adds <= 3 * space.cost.full * STEPS
        assert found.plan.origin is not None
        assert found.plan.origin.search == "local"
    assert len(used) >= 3, used


def test_losses_are_those_of_the_site_alone() -> None:
    """Everything that is tried at the first site of step 1 has the losses of the definition."""
    model = sample("dit", "cond-first")
    found = find("local", space_of(model.program), flow(), 1e-9, guidance_scale=SCALE, seed=3)
    run = PlainRun(model, seed=3)
    run.go_on(0)
    for site in run.windows:
        reference = run.site_output(1, site)
        assert found.plan.losses is not None
        tried = found.plan.losses[1][site]
        assert list(tried) == [Method(method) for method in ORDER]
        for method, loss in tried.items():
            run.cells[1][site] = str(method)
            assert loss == pytest.approx(loss_of(reference, run.site_output(1, site)), rel=1e-3)
        run.cells[1][site] = "full"
