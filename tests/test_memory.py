"""Bytes of weights and of values alive at once, against what torch itself holds."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ditc.export import compile as compile_bundle
from ditc.export.preparing import Limits, prepared
from ditc.export.specialising import Specialisation
from ditc.passes import Program, Schedule, Window, capture, schedule, schedule_cost, split_prologue
from ditc.passes.memory import activation_bytes, prologue_bytes, weight_bytes
from ditc.runtime import Bundle
from ditc.runtime.errors import PlanError
from ditc.runtime.weights import map_tensors

from .compiled import arrays, planned
from .samples import mixed, sample


class Meter(TorchDispatchMode):
    """Adds up what operators allocate, less what is freed, and remembers the most."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.now, self.most = known, 0, 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else (made,):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        self.most = max(self.most, self.now)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def test_linear_by_hand() -> None:
    class Chain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 32), torch.nn.Linear(32, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.nn.functional.gelu(self.first(x).view(6, 32))
            return self.second(hidden.view(2, 3, 32)) + x

    program = capture(Chain(), {"x": torch.zeros(2, 3, 8)})
    assert weight_bytes(program) == 4 * (2 * 8 * 32 + 32 + 8)
    # x [2, 3, 8] lives throughout; the most is beside it the hidden layer before and behind gelu.
    assert activation_bytes(program) == 4 * 6 * (8 + 32 + 32)


def test_tied_weights_count_once() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(8, 8, bias=False)
            self.second = torch.nn.Linear(8, 8, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    assert weight_bytes(capture(Tied(), {"x": torch.zeros(3, 8)})) == 4 * 64


def program_of(name: str) -> Program:
    return sample(name, "cond-first").program


@pytest.mark.parametrize("name", ["fused-qkv", "dit", "pixart"])
def test_no_less_than_torch_frees_and_allocates(name: str) -> None:
    """Attention of torch on the CPU allocates a little besides its output, which isn't counted."""
    program = program_of(name)
    inputs = [program.example[entry.name] for entry in program.inputs]
    given = sum(value.untyped_storage().nbytes() for value in inputs)
    gc.collect()
    known = {value.untyped_storage()._cdata for value in inputs}
    known |= {value.untyped_storage()._cdata for value in program.graph_module.parameters()}
    known |= {value.untyped_storage()._cdata for value in program.graph_module.buffers()}
    with Meter(known) as meter, torch.no_grad():
        program.graph_module(*inputs)
    assert activation_bytes(program) == pytest.approx(meter.most + given, rel=0.25)


def test_a_limit_on_memory_gives_slots_up() -> None:
    model = sample("dit", "cond-first")
    plan = mixed(model, 4, steps=8)
    free = schedule(model.program, plan)
    base = free.peak_bytes - free.peak_slot_bytes
    assert base == weight_bytes(model.program) + activation_bytes(model.program)
    for room in (free.peak_slot_bytes, free.peak_slot_bytes // 2, 0):
        sched = schedule(model.program, plan, max_memory_bytes=base + room)
        assert sched.peak_bytes <= base + room
        assert bool(sched.dropped) == (room < free.peak_slot_bytes)
        assert schedule_cost(sched).attention >= schedule_cost(free).attention
    both = schedule(
        model.program, plan, max_memory_bytes=base + free.peak_slot_bytes, max_slot_bytes=0
    )
    assert both.slots == ()


def test_a_limit_below_what_is_needed_anyway() -> None:
    model = sample("small", "cond-first")
    base = weight_bytes(model.program) + activation_bytes(model.program)
    with pytest.raises(PlanError, match=rf"^max_memory_bytes is 7, but .* at least {base}, at"):
        schedule(model.program, mixed(model, 1), max_memory_bytes=7)


@pytest.mark.parametrize(("name", "precision"), [("dit", "fp32"), ("pixart", "fp16")])
def test_what_is_foretold_is_what_a_bundle_takes(name: str, precision: str, tmp_path: Path) -> None:
    """Of weights, slots and the prologue to the byte, counted in what is written and kept."""
    model = sample(name, "uncond-first")
    plan = planned(model.program, "full", "wa-rs", "ast", "full", window=Window(3))
    plain = schedule(model.program, plan, 3)
    told: list[Schedule] = []
    path = compile_bundle(plain, tmp_path / "b", precision=precision, foretell=told.append)
    (sched,) = told
    stored = map_tensors(path / "weights.safetensors")
    sizes = [t.nbytes for name, t in stored.items() if not name.startswith("constant")]
    assert weight_bytes(sched.program) == sum(sizes)
    bundle = Bundle.open(path, threads=1)
    assert sched.peak_slot_bytes == sum(bundle.manifest.storage_bytes.values()) > 0
    for _ in range(2):  # from the second time on all timesteps are known
        for step in range(4):
            bundle.step(step, **arrays(model.program, model.kwargs(step)))
    kept = (*bundle.feed._prompt.values(), *bundle.feed._all_steps.values())
    assert prologue_bytes(sched.program) == sum(np.asarray(array).nbytes for array in kept) > 0
    assert sched.peak_slot_bytes == plain.peak_slot_bytes / (2 if precision == "fp16" else 1)
    counted = (weight_bytes, activation_bytes, prologue_bytes)
    assert sched.peak_bytes - sched.peak_slot_bytes == sum(of(sched.program) for of in counted)


def test_a_prologue_computes_all_steps_at_once() -> None:
    """Its part for all steps takes a step's values so many times; what is kept isn't among them."""
    program = program_of("dit")
    few, many = (split_prologue(program, steps) for steps in (2, 4000))
    assert few.prologue is not None
    assert many.prologue is not None
    assert activation_bytes(few) < activation_bytes(program)
    if many.prologue.step is not None:
        assert activation_bytes(many) > activation_bytes(few)


def fitted(sched: Schedule, precision: str, limits: Limits) -> Schedule:
    """Return a schedule as it would be lowered."""
    special = Specialisation(sched.steps, folds=False, guides=False, splits=True)
    how = (precision, None, lambda _: None)
    return prepared(sched, None, how, special, limits, None, None).sched


def test_limits_are_counted_as_compiled() -> None:
    """Half precision leaves room for slots that fp32 has none for."""
    model = sample("dit", "cond-first")
    sched = schedule(model.program, mixed(model, 4, steps=5))
    most = sched.peak_slot_bytes // 2
    found = {name: fitted(sched, name, Limits(most, None)) for name in ("fp32", "bf16")}
    assert len(found["fp32"].dropped) > len(found["bf16"].dropped) == 0
    assert all(each.peak_slot_bytes <= most for each in found.values())
    whole = found["bf16"].peak_bytes
    tight = fitted(sched, "bf16", Limits(None, whole - 1))
    assert tight.peak_bytes < whole
    assert tight.dropped
    assert prologue_bytes(tight.program) == prologue_bytes(found["bf16"].program) > 0
    assert fitted(sched, "bf16", Limits(None, whole)).dropped == ()


def test_a_compile_that_finds_no_room_writes_nothing(tmp_path: Path) -> None:
    model = sample("dit", "cond-first")
    sched = schedule(model.program, mixed(model, 4, steps=5))
    with pytest.raises(PlanError, match="max_memory_bytes is 9, but weights take"):
        compile_bundle(sched, tmp_path / "none", max_memory_bytes=9)
    assert not (tmp_path / "none").exists()
