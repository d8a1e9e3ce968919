"""What is done to a schedule before any of its graphs is lowered."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from ditc.passes import Program, Schedule
from ditc.passes.limiting import within
from ditc.passes.picked_rows import picked_rows
from ditc.runtime.errors import LoweringError
from ditc.runtime.sampler import SamplerTable

from .batching import Batches, batches_of
from .checking import check_scheduler, check_timestep, check_variance
from .decoder import capture_decoder
from .precision import in_precision
from .sampler import sampler_table
from .specialising import Specialisation

__all__ = ["Limits", "Prepared", "prepared"]

Calibration = Iterable[Mapping[str, torch.Tensor]] | None
Dynamic = Mapping[str, tuple[int, int]] | None


@dataclass(frozen=True)
class Limits:
    """Bytes that may be taken, for the most samples that are served; `compile` says of what."""

    slot_bytes: int | None
    memory_bytes: int | None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A schedule as it is lowered.

    Attributes:
        sched: in its precision, specialised, within limits.
        table: coefficients of its sampler, if it has one.
        pictures: the captured decoder, if there is one.
        batches: the batch sizes that it serves, None for the captured one alone.
        rows: of the tables that inputs pick rows of, by input.
    """

    sched: Schedule
    table: SamplerTable | None
    pictures: Program | None
    batches: Batches | None
    rows: Mapping[str, int]


def prepared(
    sched: Schedule,
    sampler: object,
    precision: tuple[str, Calibration, Callable[[str], object]],
    special: Specialisation,
    limits: Limits,
    dynamic: Dynamic,
    decoder: torch.nn.Module | Program | None,
) -> Prepared:
    """Return a schedule as it is lowered: in its precision, specialised, within limits.

    Args:
        sched: as it was planned.
        sampler: a diffusers scheduler, or None.
        precision: its name, what to calibrate it on, and what is told of it.
        special: what is done to its program.
        limits: on bytes.
        dynamic: batch sizes to serve.
        decoder: an autoencoder, what was captured of one, or None.

    Raises:
        DitcError: as `compile` does.
    """
    sched = sched.on(in_precision(sched.program, *precision))
    check_scheduler(sched.plan, sampler)
    table = None if sampler is None else _told(sched.program, sampler_table(sampler, sched.steps))
    if table is not None:
        check_timestep(sched.program, table)
        check_variance(sched.program, table)
    pictures = _pictures(decoder, sched.program)
    batches = batches_of(sched, dynamic, special)
    compiled = special.of(sched.program)
    times = 1 if batches is None else batches.most / sched.program.samples
    fits = within(sched, limits.slot_bytes, limits.memory_bytes, compiled=compiled, times=times).on(
        compiled
    )
    if special.holds:
        fits = _holding(fits, table, dynamic)
    ready = None if batches is None else batches.of(fits)
    return Prepared(fits, table, pictures, ready, picked_rows(sched.program))


def _holding(sched: Schedule, table: SamplerTable | None, dynamic: Dynamic) -> Schedule:
    """Return a schedule whose graphs of one step hold their timesteps."""
    if table is None:
        raise LoweringError(
            "timesteps can't be folded without a sampler, whose timesteps they are: pass sampler="
        )
    if dynamic is not None:
        raise LoweringError(
            "timesteps can't be folded into graphs that serve several batch sizes: leave out "
            "fold_timesteps or dynamic"
        )
    return sched.holding(table.timesteps)


def _pictures(decoder: torch.nn.Module | Program | None, program: Program) -> Program | None:
    """Return the captured decoder, if there is one."""
    if decoder is None or isinstance(decoder, Program):
        return decoder
    return capture_decoder(decoder, program)


def _told(program: Program, table: SamplerTable) -> SamplerTable:
    """Return a table with the timesteps that the denoiser is told."""
    return replace(table, timesteps=tuple(program.told.of(time) for time in table.timesteps))
