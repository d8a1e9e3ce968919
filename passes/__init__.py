"""The middle of the compiler: capture a denoiser, plan, schedule, rewrite.

>>> program = capture(module, kwargs, cfg="cond-first")
>>> plan = Plan.uniform(program, steps=20, method="ast")
>>> session = TorchSession(schedule(program, plan))
"""

from .arithmetic import ScheduleCost, schedule_cost
from .attention import windowed_attention
from .capturing import capture
from .costs import ModelCost, SiteCost, attention_core, model_cost, multiply_adds, site_cost
from .method import Method
from .origin import Gate, Origin, Tried
from .plan import Losses, Plan
from .program import Identity, Input, Program, Site, Slot
from .recording import Recording, record
from .rewriting import rewrite
from .scheduling import Bucket, Schedule, schedule
from .session import TorchSession
from .window import Window

__all__ = [
    "Bucket",
    "Gate",
    "Identity",
    "Input",
    "Losses",
    "Method",
    "ModelCost",
    "Origin",
    "Plan",
    "Program",
    "Recording",
    "Schedule",
    "ScheduleCost",
    "Site",
    "SiteCost",
    "Slot",
    "TorchSession",
    "Tried",
    "Window",
    "attention_core",
    "capture",
    "model_cost",
    "multiply_adds",
    "record",
    "rewrite",
    "schedule",
    "schedule_cost",
    "site_cost",
    "windowed_attention",
]
