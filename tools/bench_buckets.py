"""Bench the limit on buckets on a DiT-XL/2 plan: `python -m ditc.tools.bench_buckets [SEED]`.

A plan of 50 steps whose cells are drawn with a mix of methods that leaves half of the attention's
multiply-adds (49% at D4 of DiTFastAttn on DiT-XL/2-512). Once every cell is drawn by itself: beside
what is kept stands what no grouping can exceed. Then sites keep their method from step to step with
some chance, which is what merging lives on; how persistent each plan is stands beside it, and what
the demo's searched plan comes to. Nothing of DiT-XL/2 but its shapes enters.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers import DiTTransformer2DModel

from ditc.passes import Method, Plan, Program, capture
from ditc.passes.merging import Merging

from .argument_types import seed
from .merging_bound import MergingBound
from .models import DEMO_PLAN

__all__ = ["drawn", "measured", "persistence", "program", "run"]

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
LIMITS = (1, 2, 4, 6, 8, 10, 12, 16, 24, 32, 40, 50)
WANTED = 0.9
"""Share of the unlimited saving that few buckets should keep."""
STAYS = {"independent": 0.0, "persistent_half": 0.5, "persistent_80": 0.8, "persistent_95": 0.95}
"""Kinds of plan: the chance of a site to keep its method from one step to the next."""


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


def persistence(plan: Plan) -> tuple[float, float]:
    """Return how often a site keeps its method from a step to the next, and how often by chance.

    Steps 0, which is full, and 1 don't count. By chance means: with the cells' methods shuffled.
    """
    cells = [plan.method(step, site) for step in range(1, plan.steps) for site in plan.sites]
    pairs = [
        plan.method(step, site) is plan.method(step - 1, site)
        for step in range(2, plan.steps)
        for site in plan.sites
    ]
    shares = [cells.count(method) / len(cells) for method in Method]
    return sum(pairs) / len(pairs), sum(share**2 for share in shares)


def measured(plan: Plan, limits: Sequence[int] = LIMITS) -> dict[str, object]:
    """Return what limits keep of a plan, what no grouping can exceed, and its persistence."""
    merging, bound = Merging(plan), MergingBound(plan)
    curve = merging.curve()

    def kept(limit: int) -> float:
        """Return the share that the grouping keeps which a compile under the limit takes."""
        cost = float(merging.cost(merging.group(limit)[None])[0])
        return (curve.full - cost) / (curve.full - curve.costs[-1])

    stays, by_chance = persistence(plan)
    shown = [limit for limit in limits if limit <= curve.buckets]
    return {
        "attention_left": curve.costs[-1] / curve.full,
        "keeps_method": round(stays, 3),
        "keeps_method_by_chance": round(by_chance, 3),
        "buckets": curve.buckets,
        "knee": curve.knee,
        "least_limit_not_ruled_out": bound.least(WANTED),
        "kept": {str(limit): round(kept(limit), 4) for limit in shown},
        "bound": {str(limit): round(bound.kept(limit), 4) for limit in shown},
    }


def run(seed: int) -> dict[str, object]:
    """Return what is measured of the kinds of plan, and of the plan searched for the demo."""
    model = program()
    found: dict[str, object] = {"seed": seed, "steps": STEPS, "layers": LAYERS}
    for name, stay in STAYS.items():
        found[name] = measured(drawn(model, seed, stay))
    return {**found, "demo_searched": measured(Plan.load(DEMO_PLAN))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m ditc.tools.bench_buckets", description=__doc__)
    parser.add_argument("seed", nargs="?", type=seed, default=0, help="of the drawn plans (0)")
    sys.stdout.write(json.dumps(run(parser.parse_args(arguments).seed), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
