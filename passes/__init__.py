"""The middle of the compiler: capture a denoiser, plan, schedule, rewrite.

>>> program = capture(module, kwargs, cfg="cond-first")
>>> plan = Plan.uniform(program, steps=20, method="ast")
>>> session = TorchSession(schedule(program, plan))

Plans are read, compared and explained without torch: what works on graphs is imported when it is
first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .costs import ModelCost, SiteCost, attention_core
from .identity import Identity
from .method import Method
from .origin import Gate, Goal, Origin, Tried
from .plan import Losses, Plan
from .schema import plan_schema
from .tile_window import TileLayout, TileWindow
from .window import Window

if TYPE_CHECKING:
    from .arithmetic import ScheduleCost, schedule_cost
    from .attention import windowed_attention
    from .capturing import capture
    from .counting import model_cost, multiply_adds, site_cost
    from .folding import fold_halves
    from .guiding import fuse_guidance
    from .laying_out import with_tile_layout
    from .limiting import schedule
    from .program import Input, Program, Site, Slot
    from .prologue import Prologue
    from .recording import Recording, record
    from .rewriting import rewrite
    from .scheduling import Bucket, Schedule
    from .session import TorchSession
    from .splitting import split_prologue
    from .tile_attention import tiled_attention

__all__ = [
    "Bucket",
    "Gate",
    "Goal",
    "Identity",
    "Input",
    "Losses",
    "Method",
    "ModelCost",
    "Origin",
    "Plan",
    "Program",
    "Prologue",
    "Recording",
    "Schedule",
    "ScheduleCost",
    "Site",
    "SiteCost",
    "Slot",
    "TileLayout",
    "TileWindow",
    "TorchSession",
    "Tried",
    "Window",
    "attention_core",
    "capture",
    "fold_halves",
    "fuse_guidance",
    "model_cost",
    "multiply_adds",
    "plan_schema",
    "record",
    "rewrite",
    "schedule",
    "schedule_cost",
    "site_cost",
    "split_prologue",
    "tiled_attention",
    "windowed_attention",
    "with_tile_layout",
]

WITH_TORCH = {
    "Bucket": "scheduling",
    "Input": "program",
    "Program": "program",
    "Prologue": "prologue",
    "Recording": "recording",
    "Schedule": "scheduling",
    "ScheduleCost": "arithmetic",
    "Site": "program",
    "Slot": "program",
    "TorchSession": "session",
    "capture": "capturing",
    "fold_halves": "folding",
    "fuse_guidance": "guiding",
    "model_cost": "counting",
    "multiply_adds": "counting",
    "record": "recording",
    "rewrite": "rewriting",
    "schedule": "limiting",
    "schedule_cost": "arithmetic",
    "site_cost": "counting",
    "split_prologue": "splitting",
    "tiled_attention": "tile_attention",
    "windowed_attention": "attention",
    "with_tile_layout": "laying_out",
}
"""Module of each public name that needs torch."""

if not TYPE_CHECKING:  # checkers see the imports above, and so know names that aren't there

    def __getattr__(name: str) -> object:
        """Import a name that needs torch when it is first asked for."""
        if name not in WITH_TORCH:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{WITH_TORCH[name]}", __name__), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *WITH_TORCH})
