"""What is checked before a schedule is compiled: choices, scheduler, timesteps, variance."""

from ditc.passes import Plan, Program, Schedule
from ditc.passes.graphs import dtype_name, flat_outputs
from ditc.runtime.errors import LoweringError, PlanError
from ditc.runtime.sampler import SamplerTable

__all__ = ["check_choice", "check_schedule", "check_scheduler", "check_timestep", "check_variance"]


def check_schedule(given: object) -> None:
    """Refuse what is no schedule."""
    if not isinstance(given, Schedule):
        raise LoweringError(
            f"expected a Schedule to compile, found a {type(given).__name__}: pass "
            "schedule(program, plan)"
        )


def check_choice(what: str, given: str, known: tuple[str, ...]) -> None:
    """Refuse a choice that isn't known."""
    if given not in known:
        raise LoweringError(f"{what} {given!r} is not known: expected {' or '.join(known)}")


def check_scheduler(plan: Plan, sampler: object) -> None:
    """Refuse a sampler that the plan wasn't found with."""
    found = type(sampler).__name__
    if sampler is None or plan.scheduler in (None, found):
        return
    raise PlanError(
        f"plan was found with {plan.scheduler}, the sampler is {found}: pass that scheduler, find "
        "a plan with this one, or use dataclasses.replace(plan, scheduler=None) to have it all "
        "the same"
    )


def check_timestep(program: Program, table: SamplerTable) -> None:
    """Refuse a sampler whose timesteps the program would never be told, or told rounded."""
    given = next((entry for entry in program.inputs if entry.role == "timestep"), None)
    conditions = [entry.name for entry in program.inputs if entry.role == "condition"]
    if given is None and conditions:
        raise LoweringError(
            f"none of the inputs ({', '.join(conditions)}) is named as the timestep, which would "
            "stay the same in all steps: state it with capture(..., timestep='...')"
        )
    broken = [number for number in table.timesteps if not number.is_integer()]
    if given is not None and not given.dtype.is_floating_point and broken:
        raise LoweringError(
            f"input {given.name} is {dtype_name(given.dtype)}, but {table.scheduler} has the "
            f"timestep {broken[0]:g}: capture with a timestep of torch.float32"
        )


def check_variance(program: Program, table: SamplerTable) -> None:
    """Refuse a sampler that takes its variance from a model that doesn't predict it."""
    shape = tuple(flat_outputs(program.graph_module.graph)[0].meta["val"].shape)
    expected = (program.latents.shape[0], 2 * program.latents.shape[1], *program.latents.shape[2:])
    if table.log_variance is not None and shape != expected:
        raise LoweringError(
            f"{table.scheduler} of variance_type 'learned_range' takes its variance from the "
            f"model, whose output {program.outputs[0]} is {list(shape)}, expected "
            f"{list(expected)} with twice the latents' channels: build it with a fixed variance"
        )
