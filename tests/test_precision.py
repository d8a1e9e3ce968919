"""Programs in half precision: how far off they are, what attention is given, their range."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch.utils import _pytree as pytree

from ditc.export import compile  # noqa: A004 (the public name)
from ditc.export.checkpoint import Checkpoint
from ditc.passes import Program, TorchSession, capture, schedule
from ditc.passes.arguments import flatten
from ditc.passes.graphs import find
from ditc.passes.operators import SDPA
from ditc.passes.precision import check_attention, own_precision, with_precision
from ditc.passes.ranges import overflows
from ditc.runtime import Bundle
from ditc.runtime.errors import EngineError, LoweringError, PassError
from ditc.tools.zoo import ZOO

from . import models
from .samples import Sample, mixed, sample

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCE = {"fp16": 2e-3, "bf16": 1.6e-2}
"""A few roundings a layer: 2⁻¹¹ and 2⁻⁸ of a value each."""
FAMILIES = (
    "SD3Transformer2DModel (3.5)",
    "FluxTransformer2DModel (dev)",
    "LTXVideoTransformer3DModel",
    "WanTransformer3DModel",
    "ZImageTransformer2DModel",
    "HunyuanDiT2DModel",
)


def relative(found: object, expected: object) -> float:
    """Return the error's norm over the value's, the largest of all outputs."""
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def arrays(model: Sample, step: int) -> dict[str, object]:
    given = dict(flatten(model.kwargs(step)))
    return {
        entry.name: given[model.program.in_paths[entry.name]].numpy()
        for entry in model.program.inputs
    }


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", ["dit", "pixart", "fused-qkv", "merged-heads", "single-module"])
def test_close_to_full_width(name: str, precision: str) -> None:
    model = sample(name, "cond-first")
    half = with_precision(model.program, precision)
    found = half(**model.kwargs(5))
    assert 0 < relative(found, model.program(**model.kwargs(5))) <= TOLERANCE[precision]
    assert all(leaf.dtype is torch.float32 for leaf in pytree.tree_leaves(found))
    for site in half.sites:
        for node in (site.query, site.key, site.value, site.attention):
            assert find(half.graph_module.graph, node).meta["val"].dtype is HALVES[precision]


@pytest.mark.parametrize("title", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_families_with_rotary_tables_and_norms_of_their_own(title: str) -> None:
    tiny = next(tiny for tiny in ZOO if tiny.title == title)
    program = capture(tiny.module(), tiny.kwargs(), tiny.cfg)
    expected = program(**tiny.kwargs(3))
    for precision, bound in TOLERANCE.items():
        half = with_precision(program, precision)
        assert relative(half(**tiny.kwargs(3)), expected) <= bound
        attentions = half.graph_module.graph.find_nodes(op="call_function", target=SDPA)
        given = {arg.meta["val"].dtype for node in attentions for arg in node.args[:3]}
        assert given == {HALVES[precision]}


@pytest.mark.parametrize("name", ["dit", "pixart", "merged-heads"])
def test_onnx_runtime_computes_in_fp16(tmp_path: Path, name: str) -> None:
    """Against the schedule in fp32, every method among its steps."""
    model = sample(name, "cond-first")
    sched = schedule(model.program, mixed(model, seed=3), max_buckets=3)
    place = compile(sched, tmp_path / "bundle", precision="fp16", jobs=1)
    bundle, reference = Bundle.open(place, threads=1), TorchSession(sched)
    assert bundle.manifest.precision == "fp16"
    assert {slot.dtype for slot in bundle.manifest.slots} == {"float16"}
    assert {entry.dtype for entry in bundle.manifest.outputs} == {"float32"}
    for step in range(sched.steps):
        found = bundle.step(step, **arrays(model, step))
        expected = pytree.tree_leaves(reference(step, **model.kwargs(step)))[0]
        assert 0 < relative(torch.from_numpy(found), expected) <= 2e-3
    weights = Checkpoint(place / "weights.safetensors")
    wide = [
        name
        for name, dtype in weights.dtypes.items()
        if dtype is torch.float32 and len(weights.shapes[name]) > 1
    ]
    small = ("time", "constant_", "scale_shift_table")
    assert all(any(word in name for word in small) for name in wide)
    assert torch.float16 in weights.dtypes.values()


def test_bf16_is_lowered_but_has_no_kernels_on_the_cpu(tmp_path: Path) -> None:
    model = sample("dit", "cond-first")
    sched = schedule(model.program, mixed(model, seed=3), max_buckets=2)
    place = compile(sched, tmp_path / "bundle", precision="bf16", jobs=1)
    for path in place.glob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)
    with pytest.raises(EngineError, match="'bf16', for which ONNX Runtime has no kernels on 'CPU"):
        Bundle.open(place)
    stored = Checkpoint(place / "weights.safetensors")
    expected = model.module.transformer_blocks[0].attn1.to_q.weight.detach().to(torch.bfloat16).t()
    name = "transformer_blocks.0.attn1.to_q.weight_bfloat16_transposed"
    assert torch.equal(stored.tensor(name), expected)


def halved(precision: str) -> Program:
    """Return a model that is of half precision itself."""
    dtype = HALVES[precision]
    kwargs = {name: value.to(dtype) for name, value in models.plain_kwargs().items()}
    return capture(models.small().to(dtype), kwargs, "cond-first")


@pytest.mark.parametrize("precision", HALVES)
def test_a_model_of_halves_is_compiled_as_it_is(tmp_path: Path, precision: str) -> None:
    program = halved(precision)
    assert own_precision(program) == precision
    half = with_precision(program, precision)
    assert [entry.dtype for entry in half.inputs] == [torch.float32] * 2
    kwargs = models.plain_kwargs(4)
    narrow = {name: value.to(HALVES[precision]) for name, value in kwargs.items()}
    assert torch.equal(half(**kwargs), program(**narrow).float())
    model = sample("small", "cond-first")
    sched = schedule(program, mixed(model, seed=1), ignore_model=True)
    place = compile(sched, tmp_path / "bundle", precision=precision, jobs=1)
    if precision == "fp16":
        found = Bundle.open(place, threads=1).step(0, **{n: v.numpy() for n, v in kwargs.items()})
        assert relative(torch.from_numpy(found), model.program(**kwargs)) <= 2e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_of_another_precision(precision: str) -> None:
    message = (
        f"the model is float16, expected float32 for precision {precision}: load it in float32"
    )
    with pytest.raises(PassError, match=message):
        with_precision(halved("fp16"), precision)


def test_full_width_that_reaches_an_attention_is_found() -> None:
    program = sample("dit", "cond-first").program
    with pytest.raises(PassError, match=r"site .*attn1: its query is float32, expected float16"):
        check_attention(program, torch.float16)


def scaled(factor: float, part: str) -> Program:
    """Return a model in which one projection makes values beyond what a half can hold."""
    module = models.small()
    with torch.no_grad():
        module.get_submodule(part).weight.mul_(factor)
    return capture(module, models.plain_kwargs(), "cond-first")


def test_values_beyond_a_half_stay_in_fp32(tmp_path: Path) -> None:
    program = scaled(1e6, "mlps.0.1")
    found = overflows(program, [program.example])
    assert found
    assert found[0].module == "mlps.0.1"
    assert found[0].largest > 65504
    lines: list[str] = []
    model = sample("small", "cond-first")
    sched = schedule(program, mixed(model, seed=1))
    place = compile(sched, tmp_path / "b", precision="fp16", jobs=1, log=lines.append)
    told = [line for line in lines if line.startswith("fp16: ")]
    assert told[0].endswith("and stays in fp32")
    assert f"in mlps.0.1) reaches {found[0].largest:.3g}" in told[0]
    kwargs = models.plain_kwargs()
    inputs = {name: value.numpy() for name, value in kwargs.items()}
    result = torch.from_numpy(Bundle.open(place, threads=1).step(0, **inputs))
    assert relative(result, program(**kwargs)) <= 2e-3
    unguarded = with_precision(program, "fp16")(**kwargs)
    assert not torch.isfinite(unguarded).all()


def test_calibration_is_of_the_samples_given(tmp_path: Path) -> None:
    program = sample("small", "cond-first").program
    large = {name: 1e6 * value for name, value in program.example.items()}
    sched = schedule(program, mixed(sample("small", "cond-first"), seed=1))
    with pytest.raises(LoweringError, match="fp16 can't hold what attention is given: "):
        compile(sched, tmp_path / "b", precision="fp16", jobs=1, calibration=[large])
    assert not (tmp_path / "b").exists()


def test_what_attention_is_given_has_to_fit(tmp_path: Path) -> None:
    program = scaled(1e7, "attentions.0.to_v")
    sched = schedule(program, mixed(sample("small", "cond-first"), seed=1))
    with pytest.raises(LoweringError, match=r"in attentions\.0.*\) reaches .*: compile with prec"):
        compile(sched, tmp_path / "b", precision="fp16", jobs=1)


def test_fp32_is_the_program_itself() -> None:
    program = sample("dit", "cond-first").program
    assert with_precision(program, "fp32") is program
    assert own_precision(replace(program)) == "fp32"
