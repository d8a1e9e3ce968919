"""Make a plan concrete: which steps share a graph, and what each reads and writes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import fx

from ditc.runtime.errors import PassError

from .calls import Call, Run, calls_of, slot_at, work_of
from .curve import Curve
from .equal_runs import Groups, Keep, rows_of
from .graphs import SLOT
from .memory import activation_bytes, prologue_bytes, weight_bytes
from .method import Method
from .nearing import Asked, Earlier, Group
from .plan import Plan
from .program import Program, Slot
from .rewriting import rewrite
from .showing import ranges
from .slots import output_slots, residual_slot
from .storage import lifetimes, share_storage, storage_bytes

__all__ = ["Bucket", "Schedule", "made"]


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
        timestep: what the model is told at its one step, where the graph holds that; None where
            it is an input.
    """

    name: str
    program: Program = field(repr=False)
    plan: Plan = field(repr=False)
    steps: tuple[int, ...]
    methods: Mapping[str, Method]
    keep_outputs: frozenset[str]
    keep_residuals: frozenset[str]
    timestep: float | None = None

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
            self.program,
            compressed,
            self.plan.windows,
            self.keep_outputs,
            self.keep_residuals,
            self.timestep,
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
        asked: what it was made for; None where steps weren't merged, or slots were given up.
    """

    program: Program = field(repr=False)
    plan: Plan = field(repr=False)
    buckets: tuple[Bucket, ...]
    owners: Mapping[tuple[int, Call], str] = field(repr=False)
    runs: tuple[Run, ...] = field(repr=False)
    dropped: tuple[Slot, ...] = ()
    curve: Curve | None = None
    asked: Asked | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        """Return which steps run which bucket, and the slots' bytes."""
        buckets = "; ".join(
            f"{bucket.name} steps {ranges(bucket.steps)}" for bucket in self.buckets
        )
        slots = f"{len(self.slots)} slots of {self.peak_slot_bytes} bytes"
        return f"Schedule({self.plan.identity.model}: {buckets}; {slots})"

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

    def holding(self, timesteps: Sequence[float]) -> "Schedule":
        """Return the schedule with the timestep of each graph that runs one step held in it.

        Args:
            timesteps: what the model is told at each step.

        Raises:
            PassError: if no graph takes a timestep.
        """
        name = self.program.timestep_name
        if name not in self.program.arguments:
            raise PassError(
                "timesteps can't be folded: no graph of a step takes one, as what is made of them "
                "is made before the steps: leave the prologue in the steps (prologue=False, "
                "--no-prologue)"
            )
        buckets = tuple(
            replace(bucket, timestep=timesteps[bucket.steps[0]])
            if len(bucket.steps) == 1
            else bucket
            for bucket in self.buckets
        )
        return replace(self, buckets=buckets)

    @property
    def peak_bytes(self) -> int:
        """Bytes predicted for all of it: weights once, slots, what a prologue keeps, and values."""
        return self.fixed_bytes + self.peak_slot_bytes

    @property
    def fixed_bytes(self) -> int:
        """Bytes predicted for all but slots."""
        program = self.program
        return weight_bytes(program) + prologue_bytes(program) + activation_bytes(program)

    @property
    def groups(self) -> Groups:
        """The steps that run the same graphs."""
        found: dict[tuple[str, ...], list[int]] = {}
        for step in range(self.steps):
            calls = calls_of(self.program.cfg)
            found.setdefault(tuple(self.owners[step, call] for call in calls), []).append(step)
        return tuple(tuple(steps) for steps in found.values())

    @property
    def earlier(self) -> Earlier | None:
        """What another schedule can stay near to; None where `asked` is."""
        if self.asked is None:
            return None
        calls = calls_of(self.program.cfg)
        groups = []
        for steps in self.groups:
            buckets = {call: self.bucket_of(steps[0], call) for call in calls}
            kept = {
                call: Keep(bucket.keep_outputs, bucket.keep_residuals)
                for call, bucket in buckets.items()
            }
            groups.append(Group(steps, self.plan.cells[steps[0]], kept))
        return Earlier(self.asked, tuple(groups))

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


def made(
    program: Program, plan: Plan, groups: Groups, kept: Sequence[Mapping[Call, Keep]] = ()
) -> Schedule:
    """Return the schedule of a plan whose groups of steps run a graph each, of one for each call.

    Args:
        program: the captured model.
        plan: methods per step and site, the same at all steps of a group.
        groups: steps that run one graph.
        kept: what the graphs of each group write by call, whether or not it is read.
    """
    runs = work_of(plan)
    rows = rows_of(runs, groups, kept)
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
