"""Programs on another device: all of them moved, nothing of the given one changed."""

from dataclasses import replace

import pytest
import torch

from ditc.passes import Plan, Program, TorchSession, Window, capture, schedule
from ditc.passes.graphs import copy_module
from ditc.passes.moving import _Mover, device_of, on_device
from ditc.passes.splitting import split_prologue
from ditc.runtime.errors import CaptureError, EngineError

from . import models
from .samples import mixed, sample

META = torch.device("meta")


class MakesTensors(torch.nn.Module):
    """A device is written into its graph, a constant lies beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = models.SdpaAttention(16, 2)
        self.register_buffer("grid", torch.arange(16.0), persistent=False)
        self.first = torch.nn.Linear(16, 16)
        self.second = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        x = x + t[:, None, None] * places[:, None] + self.grid
        return x + self.second(self.attention(self.first(x)))


def devices(program: Program) -> set[str]:
    """Return the devices of weights, of values in the graph, and those written into it."""
    module = program.graph_module
    found = {value.device.type for value in (*module.parameters(), *module.buffers())}
    for node in module.graph.nodes:
        if isinstance(node.meta.get("val"), torch.Tensor):
            found.add(node.meta["val"].device.type)
        written = [*node.args, *node.kwargs.values()]
        found |= {value.type for value in written if isinstance(value, torch.device)}
    return found | {value.device.type for value in program.example.values()}


def makes_tensors() -> Program:
    return capture(models.randomised(MakesTensors()), models.plain_kwargs())


def test_everything_is_moved_and_the_given_program_stays() -> None:
    program = makes_tensors()
    before = program(**models.plain_kwargs())
    moved = on_device(program, "meta")
    assert device_of(moved) == META
    assert devices(moved) == {"meta"}
    assert devices(program) == {"cpu"}
    assert torch.equal(program(**models.plain_kwargs()), before)
    assert moved.sites == program.sites
    assert on_device(moved, "meta") is moved


def test_a_tensor_under_two_names_stays_one() -> None:
    program = makes_tensors()
    module = copy_module(program.graph_module)
    module.again = module.get_submodule("first").weight
    with module.graph.inserting_before(module.graph.output_node()):
        module.graph.get_attr("again")
    moved = on_device(replace(program, graph_module=module), "meta").graph_module
    first = moved.get_submodule("first").weight
    assert first.device == META
    assert moved.again.untyped_storage()._cdata == first.untyped_storage()._cdata


@pytest.mark.parametrize("name", ["dit", "fused-qkv"])
def test_every_bucket_runs_there(name: str) -> None:
    """Without values: operators refuse tensors of two devices, and shapes come out."""
    model = sample(name, "uncond-first")
    sched = schedule(model.program, mixed(model, seed=3, window=Window(4)))
    moved = on_device(model.program, "meta")
    inputs = moved.bind({key: value.to(META) for key, value in model.kwargs(0).items()})
    for bucket in sched.on(moved).buckets:
        slots = [torch.empty(slot.shape, dtype=slot.dtype, device=META) for slot in bucket.reads]
        values = bucket.graph_module(*inputs, *slots)
        assert {value.device.type for value in values} == {"meta"}
        written = [tuple(value.shape) for value in values[len(moved.outputs) :]]
        assert written == [slot.shape for slot in bucket.writes]


def test_a_session_takes_a_device() -> None:
    model = sample("small", "cond-first")
    sched = schedule(model.program, Plan.uniform(model.program, 2, "ast"))
    here, there = TorchSession(sched), TorchSession(sched, "cpu")
    for step in range(2):
        assert torch.equal(here(step, **model.kwargs(step)), there(step, **model.kwargs(step)))
    assert device_of(TorchSession(sched, "meta").schedule.program) == META


class MovesValues(_Mover):
    """Weights stay, for want of a GPU; what the graph knows of its values moves."""

    def tensor(self, value: torch.Tensor) -> torch.Tensor:
        return value


def test_graphs_of_another_device_are_rewritten_and_verified() -> None:
    model = sample("dit", "cond-first")
    mover = MovesValues(torch.device("cpu"), torch.device("cuda", 0))
    program = replace(model.program, graph_module=mover.module(model.program.graph_module))
    for bucket in schedule(program, mixed(model, seed=3, window=Window(4))).buckets:
        values = [node.meta.get("val") for node in bucket.graph_module.graph.nodes]
        found = {str(value.device) for value in values if isinstance(value, torch.Tensor)}
        assert found == {"cuda:0"}


def test_a_prologue_moves_along() -> None:
    program = split_prologue(sample("dit", "cond-first").program, steps=2)
    assert program.prologue is not None
    moved = on_device(program, "meta")
    kwargs = {key: value.to(META) for key, value in models.dit_kwargs().items()}
    (out,) = moved.graph_module(*moved.feed()(moved.bind(kwargs)))
    assert (out.device, out.shape) == (META, program(**models.dit_kwargs())[0].shape)


def test_devices_that_are_not_there() -> None:
    program = sample("small", "cond-first").program
    with pytest.raises(EngineError, match=r"device nowhere can't be used: .*; torch is"):
        on_device(program, "nowhere")
    if not torch.cuda.is_available():
        sched = schedule(program, Plan.uniform(program, 1, "full"))
        with pytest.raises(EngineError, match="device cuda can't be used"):
            TorchSession(sched, "cuda")


def test_an_argument_elsewhere_is_refused() -> None:
    program = sample("small", "cond-first").program
    kwargs = {**models.plain_kwargs(), "x": torch.empty(4, 25, 16, device=META)}
    with pytest.raises(CaptureError, match="argument x is on meta, the program on cpu"):
        program(**kwargs)
