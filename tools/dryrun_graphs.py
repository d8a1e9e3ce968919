"""Graphs to try a converter on: every kind of graph that compiling makes, of small models."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ditc.export.forms import TORCH
from ditc.export.lowered import Lowered
from ditc.export.parts import part_jobs
from ditc.export.precision import in_precision
from ditc.export.specialising import Specialisation
from ditc.passes import Program, capture, schedule
from ditc.passes.program import CfgLayout

from .method_plans import each_method
from .models import demo_recording
from .windows import parse_window, windowed, with_windows
from .zoo import ZOO
from .zoo_entry import Tiny

__all__ = ["CASES", "Case", "Graph", "graphs", "zoo_cases"]


@dataclass(frozen=True)
class Case:
    """A model and how it is compiled.

    Attributes:
        title: what to call it.
        program: captures it.
        window: as on the command line.
        precision: to compile it in.
        folds: whether equal halves are folded.
        guides: whether guidance is fused.
        splits: whether a prologue is split off.
    """

    title: str
    program: Callable[[], Program]
    window: str = "band"
    precision: str = "fp32"
    folds: bool = False
    guides: bool = False
    splits: bool = False

    @property
    def options(self) -> str:
        """What is not as it is without options."""
        named = {"fold": self.folds, "guide": self.guides, "prologue": self.splits}
        return " ".join([self.window, self.precision, *(name for name, on in named.items() if on)])


@dataclass(frozen=True)
class Graph:
    """A graph of a case.

    Attributes:
        case: whose graph.
        name: of its bucket, or of the part of a prologue.
        methods: of its sites; empty for a prologue.
        make: lowers it.
    """

    case: Case
    name: str
    methods: str
    make: Callable[[], Lowered]


def _demo() -> Program:
    return demo_recording().capture()


def _tiny(name: str, cfg: CfgLayout | None, variant: str = "") -> Callable[[], Program]:
    (tiny,) = (tiny for tiny in ZOO if (tiny.name, tiny.variant) == (name, variant))
    return partial(_captured, replace(tiny, cfg=cfg))


def _captured(tiny: Tiny) -> Program:
    return capture(
        tiny.module(), tiny.kwargs(), cfg=tiny.cfg, latents=tiny.latents, timestep=tiny.timestep
    )


_DIT = "DiTTransformer2DModel"
_PIXART = _tiny("PixArtTransformer2DModel", "uncond-first")
_SD3 = _tiny("SD3Transformer2DModel", "uncond-first")
_FLUX = _tiny("FluxTransformer2DModel", None, "dev")

CASES: tuple[Case, ...] = (
    Case("demo", _demo),
    Case("demo", _demo, "block:20"),
    Case("demo", _demo, "tile:5x3"),
    Case("demo", _demo, precision="fp16", splits=True),
    Case("demo", _demo, "tile:4x4", "bf16"),
    Case("demo", _demo, folds=True, guides=True, splits=True),
    Case("DiT", _tiny(_DIT, "cond-first"), "band:3"),
    Case("DiT", _tiny(_DIT, "uncond-first"), "tile:2x2", "fp16"),
    Case("PixArt", _PIXART, "band:3", splits=True),
    Case("PixArt", _PIXART, "tile:3x2", "fp16", splits=True),
    Case("SD3", _SD3, "band:3"),
    Case("SD3", _SD3, "block:2", splits=True),
    Case("SD3", _tiny("SD3Transformer2DModel", "cond-first"), "tile:2x2", "fp16"),
    Case("Flux", _FLUX, "band:3", "bf16", splits=True),
    Case("Flux", _FLUX, "tile:2x2", "fp16"),
)
"""Every method, both orders of the halves and none, every window, self, cross and joint attention,
with a prologue and without, in every precision."""


def zoo_cases(names: Sequence[str] = ()) -> list[Case]:
    """Return every tiny model of the zoo whose name holds one of some parts; all if none."""
    chosen = [tiny for tiny in ZOO if not names or any(part in tiny.title for part in names)]
    return [Case(tiny.title, partial(_captured, tiny), "band:3", splits=True) for tiny in chosen]


def graphs(case: Case) -> Iterator[Graph]:
    """Yield the graphs of a case: one of each method at all sites, those that keep, its prologue.

    Raises:
        DitcError: if the model can't be captured, or compiled so.
    """
    program, windows = windowed(case.program(), parse_window(case.window))
    sched = schedule(program, with_windows(each_method(program), windows))
    sched = sched.on(in_precision(program, case.precision, None, _ignore))
    special = Specialisation(sched.steps, case.folds, case.guides, case.splits)
    sched = sched.on(special.of(sched.program))
    for bucket in sched.buckets:
        methods = " ".join(sorted({str(method) for method in bucket.methods.values()}))
        kept = " → kept" if bucket.keep_outputs or bucket.keep_residuals else ""
        yield Graph(case, bucket.name, f"{methods or 'full'}{kept}", partial(TORCH.lower, bucket))
    for job in part_jobs(sched.program, TORCH):
        yield Graph(case, job.name, "", job.make)


def _ignore(*_: object) -> None: ...
