"""compile(): what goes into a bundle, and what is refused before anything is written."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import nn

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, Program, Window, capture, schedule
from ditc.runtime import Bundle
from ditc.runtime.errors import BundleError, DitcError, EngineError, LoweringError, PlanError
from ditc.runtime.weights import map_tensors

from . import models
from .compiled import arrays, planned, sampling_bundle, small_bundle, small_schedule, tiny_dit
from .samples import sample
from .test_capturing import Namesakes
from .test_export_bundle import tree


def test_a_plan_is_no_schedule(tmp_path: Path) -> None:
    plan = small_schedule().plan
    with pytest.raises(LoweringError) as caught:
        compile_bundle(plan, tmp_path / "bundle")
    assert str(caught.value) == (
        "expected a Schedule to compile, found a Plan: pass schedule(program, plan)"
    )
    assert not list(tmp_path.iterdir())


def refused(kind: type[DitcError], folder: Path, act: Callable[[], object]) -> str:
    """Return the message of a refusal that is one line and leaves the folder as it was."""
    before = tree(folder)
    with pytest.raises(kind) as caught:
        act()
    assert tree(folder) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_manifest_says_what_is_there() -> None:
    sched, manifest = small_schedule(), Bundle.open(small_bundle(), threads=1).manifest
    assert (manifest.target, manifest.precision, manifest.cfg) == ("onnx", "fp32", "cond-first")
    assert (manifest.steps, manifest.sampler) == (4, None)
    assert manifest.model.class_name == "tests.models.PlainDenoiser"
    assert manifest.model.config_sha256 == sched.program.identity.config_sha256
    assert [(entry.name, entry.shape, entry.role) for entry in manifest.inputs] == [
        ("x", (4, 25, 16), "latents"),
        ("t", (4,), "timestep"),
    ]
    assert [(entry.name, entry.shape) for entry in manifest.slots] == [
        ("attentions.0.residual", (4, 2, 25, 8)),
        ("attentions.0.output", (4, 25, 16)),
    ]
    found = [(bucket.graph, bucket.steps, dict(bucket.methods)) for bucket in manifest.buckets]
    assert found == [
        ("b00.onnx", (0,), {"attentions.0": "full"}),
        ("b01.onnx", (1,), {"attentions.0": "wa-rs"}),
        ("b02.onnx", (2,), {"attentions.0": "asc"}),
        ("b03.onnx", (3,), {"attentions.0": "ast"}),
    ]
    assert [bucket.reads for bucket in manifest.buckets] == [
        (),
        ("attentions.0.residual",),
        (),
        ("attentions.0.output",),
    ]
    files = {path.name for path in small_bundle().iterdir()}
    assert files == {*manifest.files, "manifest.json"}


def test_multiply_adds_are_those_of_the_graph() -> None:
    """By hand: 25 tokens of 16 channels, 2 heads of 8, four samples, an MLP of 32."""
    manifest = Bundle.open(small_bundle(), threads=1).manifest
    projections, core = 4 * 25 * 16 * 16, 2 * 2 * 25 * 25 * 8
    rest = 4 * 16 + 4 * 25 * 2 * 16 * 32
    full, _, asc, ast = (bucket.multiply_adds for bucket in manifest.buckets)
    window_pairs = Window(3).pairs(25)
    assert ast == rest
    assert asc == rest + 2 * (4 * projections // 4 + core)
    assert full == rest + 4 * projections + 4 * core + 4 * 2 * 2 * window_pairs * 8


def test_conditioning_and_plan_are_kept() -> None:
    model = tiny_dit()
    stored = map_tensors(sampling_bundle() / "conditioning.safetensors")
    assert list(stored) == ["class_labels"]
    assert stored["class_labels"].tolist() == model.program.example["class_labels"].tolist()
    plan = Plan.load(sampling_bundle() / "plan.json")
    assert plan == planned(model.program, "full", "ast", "ast")


def test_progress_is_told_of_every_bucket(tmp_path: Path) -> None:
    told: list[int] = []
    program = sample("small", "cond-first").program
    sched = schedule(program, planned(program, "full", "ast"))
    compile_bundle(sched, tmp_path / "bundle", progress=lambda: told.append(len(tree(tmp_path))))
    assert told == [1, 1]  # the folder beside the place, still empty


def test_an_interrupted_compile_leaves_the_old_bundle(tmp_path: Path) -> None:
    program = sample("small", "cond-first").program
    place = compile_bundle(schedule(program, planned(program, "full")), tmp_path / "bundle")
    before = {path.name: path.read_bytes() for path in place.iterdir()}

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_bundle(
            schedule(program, planned(program, "full", "full")), place, progress=interrupt
        )
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    kwargs = sample("small", "cond-first").kwargs(0)
    assert Bundle.open(place, threads=1).step(0, **arrays(program, kwargs)).shape == (4, 25, 16)


def small(cfg: str | None = "cond-first", tokens: int = models.TOKENS) -> Program:
    return capture(models.small(), models.plain_kwargs(tokens=tokens), cfg=cfg)


def altered(path: Path, find: str, put: str) -> Plan:
    """Save the small plan with something else in it, and load that."""
    small_schedule().plan.save(path)
    text = path.read_text()
    assert find in text
    path.write_text(text.replace(find, put))
    return Plan.load(path)


def test_a_plan_for_something_else(tmp_path: Path) -> None:
    plan = small_schedule().plan

    def told(program: Program) -> str:
        return refused(PlanError, tmp_path, lambda: schedule(program, plan))

    assert told(sample("fused-qkv", "cond-first").program).endswith(
        "find a plan for this model, or use it all the same with ignore_model=True "
        "(--ignore-model of the command)"
    )
    assert told(small(tokens=30)) == (
        "plan is for latents [25, 16], the program has [30, 16]: find a plan at this resolution"
    )
    assert told(small(cfg=None)).startswith(
        "plan is for CFG layout cond-first, the program has None: "
    )


def test_a_plan_that_cannot_run(tmp_path: Path) -> None:
    program = sample("small", "cond-first").program
    path = tmp_path / "plan.json"

    def told(find: str, put: str) -> str:
        altered(path, find, put)
        return refused(PlanError, tmp_path, lambda: schedule(program, Plan.load(path)))

    assert told("attentions.0", "attentions.7") == (
        "unknown site attentions.7: the program has attentions.0"
    )
    early = small_schedule().plan.replace(0, "attentions.0", "wa-rs")
    assert refused(PlanError, tmp_path, lambda: schedule(program, early)) == (
        "step 0, site attentions.0: wa-rs before any full step, so there is no residual: step 0 "
        "is full"
    )
    assert told('"radius": 3', '"radius": 25') == (
        "site attentions.0: window of 25 tokens a side is wider than the sequence of 25: use "
        "full, or a radius below 25"
    )


def test_sharing_across_halves_that_are_not_there(tmp_path: Path) -> None:
    program = small(cfg=None)
    message = refused(
        PlanError, tmp_path, lambda: schedule(program, planned(program, "full", "asc"))
    )
    assert message == (
        "step 1, site attentions.0: asc without CFG halves: capture with cfg='cond-first' or "
        "'uncond-first', or use another method"
    )


def test_a_target_or_precision_nobody_knows(tmp_path: Path) -> None:
    def told(**options: str) -> str:
        place = tmp_path / "bundle"
        return refused(
            LoweringError, tmp_path, lambda: compile_bundle(small_schedule(), place, **options)
        )

    assert told(target="coreml").startswith("target 'coreml' is not known: expected onnx or ")
    assert told(weights="both") == "weights 'both' is not known: expected inputs or baked"
    assert told(precision="fp4") == ("precision 'fp4' is not known: expected fp32 or fp16 or bf16")


def test_a_sampler_that_does_not_fit(tmp_path: Path) -> None:
    def told(sampler: object) -> str:
        place, sched = tmp_path / "bundle", small_schedule()
        return refused(
            LoweringError, tmp_path, lambda: compile_bundle(sched, place, sampler=sampler)
        )

    set_to_six = EulerDiscreteScheduler()
    set_to_six.set_timesteps(6)
    assert "6" in told(set_to_six)
    assert "4" in told(set_to_six)
    assert "build it with clip_sample=False" in told(DDIMScheduler(clip_sample=True))
    assert "str" in told("euler")


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "notes.txt").write_text("mine")
    for place in (tmp_path / "place", tmp_path / "place" / "notes.txt" / "bundle"):
        message = refused(
            BundleError, tmp_path, lambda place=place: compile_bundle(small_schedule(), place)
        )
        assert str(place) in message


def copied(tmp_path: Path) -> Path:
    place = tmp_path / "bundle"
    place.mkdir()
    for path in small_bundle().iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


def test_a_bundle_that_is_not_as_it_was_written(tmp_path: Path) -> None:
    place = copied(tmp_path)

    def told() -> str:
        return refused(BundleError, tmp_path, lambda: Bundle.open(place, threads=1))

    store = place / "weights.safetensors"
    whole = store.read_bytes()
    store.write_bytes(whole[:-1])
    assert f"has {len(whole) - 1} bytes, expected {len(whole)}" in told()
    store.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "weights.safetensors: has the SHA-256 " in told()
    store.unlink()
    assert "weights.safetensors: is missing" in told()
    store.write_bytes(whole)
    manifest = place / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"version": 1', '"version": 2'))
    assert "version" in told()
    manifest.write_text(text.replace('"steps": 4', '"steps": 5'))
    assert told()
    manifest.write_text(text[: len(text) // 2])
    assert told()
    manifest.unlink()
    assert "is no bundle: it holds no manifest.json" in told()


def test_inputs_that_are_not_finite() -> None:
    program = sample("small", "cond-first").program
    bundle = Bundle.open(small_bundle(), threads=1)
    inputs = arrays(program, sample("small", "cond-first").kwargs(0))
    inputs["x"] = np.array(inputs["x"])
    inputs["x"][1, 2, 3] = np.nan
    with pytest.raises(EngineError, match=r"^input 'x' has 1 values that are NaN .*\(1, 2, 3\)"):
        bundle.step(0, **inputs)


def test_a_provider_that_is_not_there() -> None:
    with pytest.raises(EngineError, match="'CUDAExecutionProvider' isn't in this ONNX Runtime"):
        Bundle.open(small_bundle(), providers=["CUDAExecutionProvider"])


def test_a_weight_of_one_name_and_two_values_is_refused(tmp_path: Path) -> None:
    """Buckets of different models can't share a store."""
    program = sample("small", "cond-first").program
    other = capture(models.randomised(models.small(), seed=5), models.plain_kwargs(), "cond-first")
    sched = schedule(program, planned(program, "full", "asc"))
    second = replace(sched.buckets[1], program=other)
    mixed = replace(sched, buckets=(sched.buckets[0], second))
    message = refused(LoweringError, tmp_path, lambda: compile_bundle(mixed, tmp_path / "bundle"))
    assert message.startswith("weight ")
    assert message.endswith(" differs between buckets")


def test_a_plan_found_with_another_scheduler(tmp_path: Path) -> None:
    sched = small_schedule()
    found = replace(sched, plan=replace(sched.plan, scheduler="DDIMScheduler"))
    message = refused(
        PlanError,
        tmp_path,
        lambda: compile_bundle(found, tmp_path / "b", sampler=EulerDiscreteScheduler()),
    )
    assert message.startswith("plan was found with DDIMScheduler, the sampler is EulerDiscrete")


def test_a_timestep_that_no_input_takes(tmp_path: Path) -> None:
    class Sigmas(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.denoiser = models.small()

        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return self.denoiser(x, sigma.float())

    kwargs = models.plain_kwargs()
    given = {"x": kwargs["x"], "sigma": torch.ones(4, dtype=torch.int64)}
    whole, broken = DDIMScheduler(clip_sample=False), EulerDiscreteScheduler()
    for name, found, message in (
        (None, whole, "none of the inputs (sigma) is named as the timestep"),
        ("sigma", broken, "sigma is int64, but EulerDiscreteScheduler has the timestep 499.5"),
    ):
        program = capture(Sigmas(), given, timestep=name)
        sched = schedule(program, Plan.uniform(program, 3, "full"))
        compiling = partial(compile_bundle, sched, tmp_path / "bundle", sampler=found)
        told = refused(LoweringError, tmp_path, compiling)
        assert message in told


def test_weights_named_as_input_and_output(tmp_path: Path) -> None:
    module, kwargs = Namesakes(), models.plain_kwargs()
    program = capture(module, kwargs)
    path = compile_bundle(schedule(program, Plan.uniform(program, 1, "full")), tmp_path / "b")
    found = Bundle.open(path, threads=1).step(0, x=kwargs["x"].numpy(), t=kwargs["t"].numpy())
    with torch.no_grad():
        assert np.allclose(found, module(**kwargs).numpy(), atol=1e-4)  # entries of some 10


def test_a_scalar_timestep(tmp_path: Path) -> None:
    class Scalar(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x * t

    x = models.noise(2, 5, 3)
    program = capture(Scalar(), {"x": x, "t": torch.tensor(3)})
    path = compile_bundle(schedule(program, Plan.uniform(program, 1, "full")), tmp_path / "b")
    found = Bundle.open(path, threads=1).step(0, x=x.numpy(), t=np.int64(2))
    assert np.array_equal(found, 2 * x.numpy())
