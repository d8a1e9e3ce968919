"""Make a plan concrete: which steps share a graph, and what each reads and writes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from torch import fx

from ditc.runtime.errors import PlanError

from .calls import Call, Run, calls_of, slot_at, work_of
from .curve import Curve
from .equal_runs import Groups, rows_of
from .graphs import SLOT
from .laying_out import laid_out_for
from .memory import activation_bytes, weight_bytes
from .merging import Latencies, Merging, limit_buckets
from .method import Method
from .plan import Plan
from .program import Program, Slot
from .rewriting import rewrite
from .slots import output_slots, residual_slot
from .storage import lifetimes, share_storage, storage_bytes, without

__all__ = ["Bucket", "Schedule", "schedule"]


@dataclass(frozen=True, eq=False)
class Bucket:
    """The steps that run one specialised graph.

    Attributes:
        name: `b00`, `b01`, … in the order of first use.
        program: what the graph was made from.
        plan: what it was made by.
        steps: steps that run it, ascending.
        methods: method of each site the plan speaks of.
        keep_outputs: sites whose projected output it writes to a slot.
        keep_residuals: sites whose residual it writes to a slot.
    """

    name: str
    program: Program = field(repr=False)
    plan: Plan = field(repr=False)
    steps: tuple[int, ...]
    methods: Mapping[str, Method]
    keep_outputs: frozenset[str]
    keep_residuals: frozenset[str]

    @cached_property
    def graph_module(self) -> fx.GraphModule:
        """The graph: of the program's arguments, then `reads`; to its outputs, then `writes`.

        Raises:
            PassError: if a method can't be applied at a site.
        """
        folded = self.program.folded or frozenset()
        methods = {
            name: method.unshared if name in folded else method
            for name, method in self.methods.items()
        }
        compressed = {name: method for name, method in methods.items() if method is not Method.FULL}
        return rewrite(
            self.program, compressed, self.plan.windows, self.keep_outputs, self.keep_residuals
        )

    @property
    def reads(self) -> tuple[Slot, ...]:
        """Slots the graph looks up, in the order of its inputs."""
        return tuple(node.meta[SLOT] for node in self.graph_module.graph.nodes if SLOT in node.meta)

    @property
    def looked_up(self) -> tuple[Slot, ...]:
        """The same slots as its methods tell, before the graph is made; in the sites' order."""
        graph = self.program.graph_module.graph
        found: list[Slot] = []
        for site in self.program.sites:
            method = self.methods.get(site.name, Method.FULL)
            if method is Method.AST:
                found.extend(output_slots(graph, site))
            elif method.windowed:
                found.append(residual_slot(graph, site))
        return tuple(found)

    @property
    def writes(self) -> tuple[Slot, ...]:
        """Slots the graph writes, in the order of its outputs."""
        graph = self.program.graph_module.graph
        sites = self.program.sites
        outputs = (output_slots(graph, site) for site in sites if site.name in self.keep_outputs)
        residuals = (
            residual_slot(graph, site) for site in sites if site.name in self.keep_residuals
        )
        return (*(slot for slots in outputs for slot in slots), *residuals)


@dataclass(frozen=True, eq=False)
class Schedule:
    """A plan made concrete for a program.

    Attributes:
        program: the captured model.
        plan: the plan it follows, merged if buckets were limited.
        buckets: in the order of first use; every step is in exactly one, or in one for each of
            its calls.
        owners: name of the bucket that runs each call of each step.
        runs: what each call does, in order.
        dropped: slots that were given up under a limit on their bytes, least valuable first.
        curve: what each limit on buckets would have cost; None where none was asked for.
    """

    program: Program = field(repr=False)
    plan: Plan = field(repr=False)
    buckets: tuple[Bucket, ...]
    owners: Mapping[tuple[int, Call], str] = field(repr=False)
    runs: tuple[Run, ...] = field(repr=False)
    dropped: tuple[Slot, ...] = ()
    curve: Curve | None = None

    @property
    def steps(self) -> int:
        """Number of denoising steps."""
        return self.plan.steps

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """All slots, each once, in the order in which buckets write them."""
        calls = calls_of(self.program.cfg)
        used = {(run.call, self.bucket_of(run.step, run.call).name) for run in self.runs}
        return tuple(
            dict.fromkeys(
                slot_at(slot, call)
                for bucket in self.buckets
                for call in calls
                if (call, bucket.name) in used
                for slot in bucket.writes
            )
        )

    @cached_property
    def storages(self) -> Mapping[str, int]:
        """Number of each slot's storage; slots that never hold anything at once share one."""
        rows = [(run, self.bucket_of(run.step, run.call)) for run in self.runs]
        alive = lifetimes(
            [_names(run.read(slot) for slot in bucket.looked_up) for run, bucket in rows],
            [_names(run.written(slot) for slot in bucket.writes) for run, bucket in rows],
        )
        return share_storage(self.slots, alive)

    @property
    def peak_slot_bytes(self) -> int:
        """Bytes of the storage of all slots."""
        return storage_bytes(self.slots, self.storages)

    def on(self, program: Program) -> "Schedule":
        """Return the schedule of another program with the same sites, made from this one's."""
        if program is self.program:
            return self
        buckets = tuple(replace(bucket, program=program) for bucket in self.buckets)
        return replace(self, program=program, buckets=buckets)

    @property
    def peak_bytes(self) -> int:
        """Bytes predicted for all of it: weights once, slots, and the values of a full step."""
        return weight_bytes(self.program) + activation_bytes(self.program) + self.peak_slot_bytes

    def bucket_of(self, step: int, call: Call | None = None) -> Bucket:
        """Return the bucket that runs a step.

        Args:
            step: 0-based.
            call: which call of the step, the first if None.

        Raises:
            IndexError: if the plan has no such step or call.
        """
        calls = calls_of(self.program.cfg)
        name = self.owners.get((step, calls[0] if call is None else call))
        if name is None and not 0 <= step < self.steps:
            raise IndexError(f"step {step}: the plan has steps 0 to {self.steps - 1}")
        if name is None:
            raise IndexError(f"step {step} has no call {call!r}: its calls are {calls}")
        return self._named[name]

    @cached_property
    def _named(self) -> Mapping[str, Bucket]:
        return {bucket.name: bucket for bucket in self.buckets}


def schedule(
    program: Program,
    plan: Plan,
    max_buckets: int | Literal["knee"] | None = None,
    *,
    latencies: Latencies | None = None,
    near: Sequence[Sequence[int]] | None = None,
    max_slot_bytes: int | None = None,
    max_memory_bytes: int | None = None,
    ignore_model: bool = False,
) -> Schedule:
    """Return the schedule of a plan.

    A step writes a site's output if the next step is `ast` there, so that this very write is
    read; a residual if a `wa-rs` reads it before the next step that runs full attention. Steps of
    equal methods and residuals share a bucket, which writes every output that one of them has to:
    the output is there anyhow, and where nobody reads it, nobody minds.

    Args:
        program: the captured model; if the plan has windows of tiles, its tokens are laid out so.
        plan: methods per step and site; checked against the program.
        max_buckets: merge steps until at most so many graphs remain; at a merged site the less
            aggressive method wins, so quality can only rise. `"knee"` for the limit at the knee
            of the curve of predicted costs.
        latencies: measured milliseconds of sites, to merge by in place of multiply-adds.
        near: the steps of each bucket of another schedule, to stay near where merging costs at
            most 5% more so: a plan that differs little then differs in few graphs.
        max_slot_bytes: give up sharing, what saves least a byte first, until slots fit into so
            many bytes; sites compute in its place.
        max_memory_bytes: the same for all that is predicted to lie in memory at once: weights,
            the values of a step, and slots.
        ignore_model: use the plan although it was made for another model.

    Raises:
        PlanError: if the plan is not for this program, or a limit can't be held.
    """
    if max_slot_bytes is not None and max_slot_bytes < 0:
        raise PlanError(f"max_slot_bytes is {max_slot_bytes}, expected at least 0")
    if ignore_model or plan.identity == program.identity:
        program = laid_out_for(program, plan.windows.values())
    plan.check(program, ignore_model=ignore_model)
    plan = replace(plan, cfg=program.cfg)
    if max_memory_bytes is not None:
        room = _room(program, max_memory_bytes)
        max_slot_bytes = room if max_slot_bytes is None else min(room, max_slot_bytes)
    if max_buckets is None:
        groups: Groups = tuple((step,) for step in range(plan.steps))
        sched = _schedule(program, plan, groups)
    else:
        sched, groups = _limited(program, plan, max_buckets, latencies, near)
    plan, curve = sched.plan, sched.curve
    dropped: list[Slot] = []
    while max_slot_bytes is not None and sched.peak_slot_bytes > max_slot_bytes:
        least = min(sched.slots, key=lambda slot: without(plan, slot)[1] / slot.nbytes)
        dropped.append(least)
        plan = without(plan, least)[0]
        sched = _schedule(program, plan, groups)
    return replace(sched, dropped=tuple(dropped), curve=curve)


def _room(program: Program, most: int) -> int:
    """Return the bytes left for slots.

    Raises:
        PlanError: if there is no room for what is needed without any.
    """
    weights, values = weight_bytes(program), activation_bytes(program)
    if most < weights + values:
        raise PlanError(
            f"max_memory_bytes is {most}, but weights take {weights} bytes and the values of a "
            f"step {values}: expected at least {weights + values}, at which no slot is left"
        )
    return most - weights - values


def _limited(
    program: Program,
    plan: Plan,
    max_buckets: int | Literal["knee"],
    latencies: Latencies | None,
    near: Sequence[Sequence[int]] | None,
) -> tuple[Schedule, Groups]:
    """Return the schedule under a limit on buckets, and the groups of steps it merged.

    Two calls of a step may run two graphs, so that fewer groups than buckets may be allowed.
    """
    merging = Merging(plan, latencies)
    curve = merging.curve()
    knee = curve.knee if near is None else len(near)
    limit = knee if max_buckets == "knee" else max_buckets
    allowed = limit
    while True:
        merged, groups, cost = limit_buckets(merging, allowed, near)
        sched = _schedule(program, merged, groups)
        if max_buckets == "knee" or len(sched.buckets) <= limit:
            return replace(sched, curve=curve.at(allowed, cost)), groups
        allowed = min(allowed, merging.units) - 1


def _schedule(program: Program, plan: Plan, groups: Groups) -> Schedule:
    runs = work_of(plan)
    rows = rows_of(runs, groups)
    ordered = sorted(rows.items(), key=lambda item: min(item[1].runs))
    buckets = tuple(
        Bucket(
            name=f"b{number:02d}",
            program=program,
            plan=plan,
            steps=tuple(sorted({runs[index].step for index in shared.runs})),
            methods=dict(row.methods),
            keep_outputs=shared.keep_outputs,
            keep_residuals=row.keep_residuals,
        )
        for number, (row, shared) in enumerate(ordered)
    )
    owners = {
        (runs[index].step, runs[index].call): bucket.name
        for bucket, (_, shared) in zip(buckets, ordered, strict=True)
        for index in shared.runs
    }
    return Schedule(program, plan, buckets, owners, runs)


def _names(slots: Iterable[Slot]) -> list[str]:
    return [slot.name for slot in slots]
