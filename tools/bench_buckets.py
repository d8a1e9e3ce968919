"""Bench the limit on buckets on a DiT-XL/2 plan: `python -m ditc.tools.bench_buckets [SEED]`.

A plan of 50 steps whose cells are drawn with a mix of methods that leaves half of the attention's
multiply-adds (49% at D4 of DiTFastAttn on DiT-XL/2-512), once cell by cell, once with sites that
keep a method for a while as searched plans do. Nothing of the model but its shapes enters.
"""

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiTTransformer2DModel

from ditc.passes import Method, Plan, Program, capture
from ditc.passes.merging import LEAVES_OUT, Merging, site_costs

__all__ = ["bound", "drawn", "program", "run"]

STEPS = 50
LAYERS = 28
MIX = {
    Method.FULL: 0.22,
    Method.ASC: 0.16,
    Method.WA_RS: 0.15,
    Method.WA_RS_ASC: 0.15,
    Method.AST: 0.32,
}
"""Shares of methods; with these windows half of the attention is left, 49% at D4."""
LIMIT = 8


def program(layers: int = LAYERS) -> Program:
    """Return DiT-XL/2 at 512 x 512, CFG batch of two.

    Its weights are never looked at: they are views of one zero.
    """
    with torch.device("meta"):
        module = DiTTransformer2DModel(sample_size=64, num_layers=layers)
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            zero = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            setattr(owner, name, torch.nn.Parameter(zero, requires_grad=False))
        for name, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    kwargs: dict[str, object] = {
        "hidden_states": torch.zeros(2, 4, 64, 64),
        "timestep": torch.zeros(2, dtype=torch.int64),
        "class_labels": torch.tensor([0, 1000]),
    }
    return capture(module.eval(), kwargs, cfg="cond-first")


def drawn(model: Program, seed: int, stay: float) -> Plan:
    """Return a plan of the mix; a site keeps its method from step to step with chance `stay`."""
    draw = random.Random(seed)
    plan = Plan.uniform(model, STEPS, "full")
    cells = [plan.cells[0]]
    for step in range(1, STEPS):
        fresh = {site: draw.choices(list(MIX), list(MIX.values()))[0] for site in plan.sites}
        keeps = {site: step > 1 and draw.random() < stay for site in plan.sites}
        cells.append({site: cells[-1][site] if keeps[site] else fresh[site] for site in plan.sites})
    return replace(plan, cells=tuple(cells))


def bound(plan: Plan, limit: int) -> float:
    """Return a share of the unlimited saving that no grouping into so many buckets can exceed.

    In a group of n steps each saves at most what the best group of min(n, 4) steps saves a step,
    since milder methods save less the more steps meet; residuals cost nothing here. The bound is
    the best that sizes of groups could make of that.
    """
    bits = np.array(
        [[LEAVES_OUT[plan.method(step, site)] for site in plan.sites] for step in range(plan.steps)]
    )
    table = site_costs(plan)[:, :, 0]
    saved = table[:, :1] - table
    best = _best_by_size(bits, saved, 4)
    most = np.full((limit + 1, plan.steps + 1), -np.inf)
    most[0, 0] = 0.0
    for groups in range(1, limit + 1):
        for steps in range(1, plan.steps + 1):
            sizes = range(1, steps + 1)
            most[groups, steps] = max(
                most[groups - 1, steps - size] + size * best[min(size, 4) - 1] for size in sizes
            )
    merging = Merging(plan)
    unlimited = merging.full() - merging.cost(np.arange(merging.units)[None])[0]
    return float(min(1.0, most[:, plan.steps].max() / unlimited))


def _best_by_size(
    bits: npt.NDArray[np.int64], saved: npt.NDArray[np.float64], largest: int
) -> list[float]:
    """Return the most that a step saves in the best group of 1, 2, … steps."""
    sites = np.arange(bits.shape[1])
    groups, last = bits, np.arange(len(bits))
    best = []
    for size in range(1, largest + 1):
        if size > 1:
            pairs = [
                (row, step)
                for row, at in enumerate(last.tolist())
                for step in range(at + 1, len(bits))
            ]
            rows, steps = np.array(pairs).T
            groups, last = groups[rows] & bits[steps], steps
        best.append(float(saved[sites, groups].sum(1).max()))
    return best


def run(
    seed: int, limits: Sequence[int] = (1, 2, 4, 6, 8, 10, 12, 16, 24, 32, 40, 50)
) -> dict[str, object]:
    """Return the curves of the two kinds of plan, and the bound at the limit."""
    model = program()
    found: dict[str, object] = {"seed": seed, "steps": STEPS, "layers": LAYERS, "limit": LIMIT}
    for name, stay in (("independent", 0.0), ("banded", 0.95)):
        plan = drawn(model, seed, stay)
        merging = Merging(plan)
        curve = merging.curve()
        cost = float(merging.cost(merging.group(LIMIT)[None])[0])
        found[name] = {
            "attention_left": curve.costs[-1] / curve.full,
            "buckets": curve.buckets,
            "knee": curve.knee,
            "kept_at_limit": (curve.full - cost) / (curve.full - curve.costs[-1]),
            "bound_at_limit": bound(plan, LIMIT),
            "kept": {str(k): round(curve.kept(k), 4) for k in limits if k <= curve.buckets},
        }
    return found


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 0), indent=1))
