"""Lower a program's prologue: its graphs, and what the manifest says of them."""

from collections.abc import Callable, Mapping
from functools import partial

from ditc.passes.batch_steps import batched
from ditc.passes.fingerprint import graph_digest
from ditc.passes.graphs import dtype_name
from ditc.passes.program import Program
from ditc.passes.prologue import Part
from ditc.runtime.manifest import OutputInfo, PartInfo, PrologueInfo

from .building import Job
from .cache import key_of
from .forms import ONNX, Form
from .lowered import Lowered

__all__ = ["ALL_STEPS", "part_jobs", "prologue_info"]

PROMPT, STEP, ALL_STEPS = "prologue-prompt", "prologue-step", "prologue-all-steps"


def part_jobs(program: Program, form: Form = ONNX) -> list[Job]:
    """Return what lowers the graphs of a program's prologue to a form."""
    return [
        Job(name, _key(part, form), partial(_lower, name, part, program, form))
        for name, part in _parts(program).items()
    ]


def prologue_info(
    program: Program,
    lowered: Mapping[str, Lowered],
    file_of: Callable[[str], str],
    baked: bool = False,
) -> PrologueInfo | None:
    """Return what the manifest says of a program's prologue, None if it has none.

    Args:
        program: whose prologue it is.
        lowered: graphs by name.
        file_of: name of the file that holds the graph of a name.
        baked: whether graphs hold their weights.
    """
    if program.prologue is None:
        return None
    infos = {
        name: PartInfo(
            name=name,
            graph=file_of(name),
            inputs=part.inputs,
            outputs=tuple(
                OutputInfo(value.name, value.shape, dtype_name(value.dtype))
                for value in part.values
            ),
            multiply_adds=lowered[name].multiply_adds,
            weights=() if baked else lowered[name].names,
        )
        for name, part in _parts(program).items()
    }
    return PrologueInfo(
        prompt=infos.get(PROMPT),
        step=infos.get(STEP),
        all_steps=infos.get(ALL_STEPS),
        weight_bytes=program.prologue.weight_bytes,
        multiply_adds=program.prologue.multiply_adds,
    )


def _parts(program: Program) -> dict[str, Part]:
    """Return the graphs of a program's prologue by name."""
    prologue = program.prologue
    if prologue is None:
        return {}
    parts = {PROMPT: prologue.prompt, STEP: prologue.step}
    found = {name: part for name, part in parts.items() if part is not None}
    if prologue.step is not None:
        timestep = next(entry.name for entry in program.inputs if entry.role == "timestep")
        found[ALL_STEPS] = batched(prologue.step, timestep, prologue.steps)
    return found


def _lower(name: str, part: Part, program: Program, form: Form) -> Lowered:
    outputs = [value.name for value in part.values]
    return form.lower_graph(part.graph_module, part.inputs, outputs, program, name)


def _key(part: Part, form: Form) -> str:
    names = [value.name for value in part.values]  # which the graph doesn't say
    digest = graph_digest(part.graph_module.graph)
    return key_of(form.name, "prologue", part.inputs, names, digest)
