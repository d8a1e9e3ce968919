"""The list of passes that turns a program into the graph of one bucket."""

from collections.abc import Mapping, Set

from torch import fx

from ditc.runtime.errors import PassError

from .base import Pass, run
from .fold_timestep import FoldTimestep
from .graphs import copy_module
from .keep_slots import KeepSlots
from .method import Method
from .program import Program, Site
from .remove_dead_code import RemoveDeadCode
from .share_cfg import ShareCfg
from .share_steps import ShareSteps
from .verify import verify_values
from .window import SiteWindow
from .window_attention import WindowAttention

__all__ = ["pipeline", "rewrite"]


def pipeline(
    program: Program,
    methods: Mapping[str, Method],
    windows: Mapping[str, SiteWindow],
    keep_outputs: Set[str],
    keep_residuals: Set[str],
    timestep: float | None = None,
) -> tuple[Pass, ...]:
    """Return the passes of a bucket, in processing order.

    Args:
        program: the captured model.
        methods: method of each site that isn't `full`.
        windows: window of each site that uses one or keeps a residual.
        keep_outputs: names of sites whose projected output a later step reads.
        keep_residuals: names of sites whose residual a later step reads.
        timestep: what the model is told at the one step that runs the graph, to hold it there;
            None for a graph that is told.
    """

    def where(*wanted: Method) -> tuple[Site, ...]:
        return tuple(site for site in program.sites if methods.get(site.name) in wanted)

    def named(names: Set[str]) -> tuple[Site, ...]:
        return tuple(site for site in program.sites if site.name in names)

    return (
        FoldTimestep(program.timestep_name, timestep),
        KeepSlots(named(keep_outputs), named(keep_residuals), windows),
        WindowAttention(where(Method.WA_RS, Method.WA_RS_ASC), windows),
        ShareCfg(
            where(Method.ASC, Method.WA_RS_ASC),
            program.cfg or "cond-first",  # without halves no site shares them
            program.latents.name,
        ),
        ShareSteps(where(Method.AST)),
        RemoveDeadCode(),
    )


def rewrite(
    program: Program,
    methods: Mapping[str, Method],
    windows: Mapping[str, SiteWindow],
    keep_outputs: Set[str] = frozenset(),
    keep_residuals: Set[str] = frozenset(),
    timestep: float | None = None,
) -> fx.GraphModule:
    """Return the graph of a bucket; arguments as for `pipeline`.

    Its inputs are the program's and then the slots it looks up, its outputs the program's and
    then the slots it writes. Weights are the program's own.

    Raises:
        PassError: naming pass, site or node, if a method can't be applied.
    """
    module = copy_module(program.graph_module)
    passes = pipeline(program, methods, windows, keep_outputs, keep_residuals, timestep)
    changed = run(passes, module)
    expected = {
        KeepSlots.name: len(keep_outputs) + len(keep_residuals),
        WindowAttention.name: sum(method.windowed for method in methods.values()),
        ShareCfg.name: sum(method.shares_cfg for method in methods.values()),
        ShareSteps.name: sum(method is Method.AST for method in methods.values()),
    }
    for name, count in expected.items():
        if changed[name] != count:
            raise PassError(f"pass {name}: changed {changed[name]} sites, expected {count}")
    verify_values(module)
    return module
