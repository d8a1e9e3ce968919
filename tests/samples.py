"""The models captured, each once in a run of the tests, and plans for them."""

import random
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from ditc.passes import Plan, Program, Window, capture

from . import models

STEPS = 9
METHODS = ("full", "asc", "wa-rs", "wa-rs+asc", "ast")
LAYOUTS = ("cond-first", "uncond-first")
SAMPLES = {
    "dit": (models.dit, models.dit_kwargs),
    "pixart": (models.pixart, models.pixart_kwargs),
    "small": (models.small, models.plain_kwargs),
    "fused-qkv": (models.fused_qkv, models.plain_kwargs),
    "merged-heads": (models.merged_heads, models.plain_kwargs),
    "single-module": (models.single_module, models.plain_kwargs),
}


@dataclass
class Sample:
    name: str
    module: torch.nn.Module
    program: Program
    sites: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.sites = tuple(site.name for site in self.program.sites if site.eligible)

    def kwargs(self, seed: int) -> models.Kwargs:
        return SAMPLES[self.name][1](seed)

    def paths(self) -> dict[str, str]:
        if self.name != "single-module":
            return {site: site for site in self.sites}
        return {site: f"attentions.{index}" for index, site in enumerate(self.sites)}


@lru_cache
def sample(name: str, cfg: str | None) -> Sample:
    module = SAMPLES[name][0]()
    return Sample(name, module, capture(module, SAMPLES[name][1](), cfg=cfg))


def mixed(model: Sample, seed: int, window: Window | None = None, steps: int = STEPS) -> Plan:
    draw = random.Random(seed)
    plan = Plan.uniform(model.program, steps=steps, method="full", window=window)
    allowed = METHODS if model.program.cfg else ("full", "wa-rs", "ast")
    for step in range(1, steps):
        for site in model.sites:
            plan = plan.replace(step, site, draw.choice(allowed))
    return plan
