"""One bundle for a range of batch sizes: at each the numbers of a bundle made for that size."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn
from torch.utils import _pytree as pytree

from ditc.export import compile as compile_bundle
from ditc.passes import TorchSession, Window, capture, schedule
from ditc.runtime import Bundle
from ditc.runtime.batches import resized
from ditc.runtime.errors import BundleError, EngineError, LoweringError
from ditc.runtime.fields import digest_of
from ditc.runtime.files import MANIFEST_FILE
from ditc.runtime.manifest import Manifest
from ditc.runtime.null import NullBackend
from ditc.tools.cli import main
from ditc.tools.models import demo_recording

from . import models
from .compiled import planned, sampling_bundle, tiny_dit, workshop
from .samples import mixed, sample
from .test_compiling import refused

MOST = 5


@lru_cache
def ranged(name: str, cfg: str | None, block: int = 1) -> Path:
    """Return a bundle for 1 to 5 samples of a model that was captured with two."""
    model = sample(name, cfg)
    plan = mixed(model, 3, window=Window(4, block), steps=6)
    place = workshop() / f"ranged-{name}-{cfg}-{block}"
    batch = {"batch": (1, MOST if cfg else 6)}
    return compile_bundle(schedule(model.program, plan, 4), place, dynamic=batch)


@pytest.mark.parametrize(
    ("name", "cfg"),
    [
        ("fused-qkv", "cond-first"),
        ("dit", None),
        ("pixart", "uncond-first"),
    ],
)
def test_each_size_is_as_compiled_for_it(name: str, cfg: str | None) -> None:
    model = sample(name, cfg)
    bundle = Bundle.open(ranged(name, cfg), threads=1)
    sched = schedule(model.program, mixed(model, 3, window=Window(4), steps=6), 4)
    for samples in (3, 1, MOST, 2):
        program = model.program.resized(samples)
        session = TorchSession(sched.on(program))
        draw = torch.Generator().manual_seed(samples)
        for step in range(6):
            kwargs = {
                entry.name: torch.randn(entry.shape, generator=draw)
                if entry.role == "latents"
                else program.example[entry.name]
                for entry in program.inputs
            }
            nested = {program.in_paths[name]: value for name, value in kwargs.items()}
            expected = session(step, **unflattened(nested))
            first = pytree.tree_leaves(expected)[0]
            assert isinstance(first, torch.Tensor)
            found = bundle.step(step, **{name: value.numpy() for name, value in kwargs.items()})
            found = next(iter(found.values())) if isinstance(found, dict) else found
            assert found.shape[0] == samples * (2 if cfg else 1)
            error = np.abs(found - first.numpy()).max() / first.abs().max().item()
            assert error <= 1e-5  # fp32, other kernels


def unflattened(paths: dict[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for path, value in paths.items():
        name, _, rest = path.partition(".")
        if rest:
            inner = found.setdefault(name, {})
            assert isinstance(inner, dict)
            inner[rest] = value
        else:
            found[name] = value
    return found


def test_resized_programs_are_the_module_at_other_sizes() -> None:
    model = sample("pixart", "uncond-first")
    for samples in (1, 3):
        program = model.program.resized(samples)
        assert program.samples == samples
        kwargs = unflattened(
            {program.in_paths[name]: value for name, value in program.example.items()}
        )
        kwargs["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
        with torch.no_grad():
            expected = model.module(**kwargs)[0]
        assert torch.equal(pytree.tree_leaves(program(**kwargs))[0], expected)
        mask = model.program.example["encoder_attention_mask"]
        assert torch.equal(program.example["encoder_attention_mask"][:1], mask[:1])
        assert torch.equal(program.example["encoder_attention_mask"][samples:][:1], mask[2:3])


def test_graphs_and_manifest_tell_the_range() -> None:
    place = ranged("fused-qkv", "cond-first")
    manifest = Manifest.from_json((place / MANIFEST_FILE).read_text())
    assert (manifest.samples, manifest.batches) == (2, (1, MOST))
    record = json.loads((place / MANIFEST_FILE).read_text())["dynamic"]
    assert record["batch"] == [1, MOST]
    assert record["axes"]["x"] == record["axes"]["t"] == record["axes"]["sample"] == 0
    assert resized(manifest, 5).inputs[0].shape == (10, 25, 16)
    largest = resized(manifest, MOST).storage_bytes
    assert {n: size * 5 // 2 for n, size in manifest.storage_bytes.items()} == largest
    for bucket in manifest.buckets:
        graph = onnx.load(place / bucket.graph, load_external_data=False).graph
        latents = graph.input[0].type.tensor_type.shape.dim
        assert [dim.dim_param or dim.dim_value for dim in latents] == ["batch", 25, 16]
        assert not graph.value_info


def test_generate_at_other_sizes(tmp_path: Path) -> None:
    """To the bit what bundles compiled for each size make, with conditioning repeated in turn."""
    program = tiny_dit().program
    sched = schedule(program, planned(program, "full", "ast", "asc"))
    sampler = FlowMatchEulerDiscreteScheduler()
    place = compile_bundle(sched, tmp_path / "b", sampler=sampler, dynamic={"batch": (1, 3)})
    bundle = Bundle.open(place, threads=1)
    assert bundle.generate(seed=1).shape == (1, 3, 10, 10)
    three = sched.on(program.resized(3))
    alone = Bundle.open(compile_bundle(three, tmp_path / "c", sampler=sampler), threads=1)
    found = bundle.generate(seed=1, batch=3)
    np.testing.assert_allclose(found, alone.generate(seed=1), atol=1e-5)
    labels = {"class_labels": np.array([4, 5, 6])}
    given = bundle.generate(seed=1, batch=3, **labels)
    np.testing.assert_allclose(given, alone.generate(seed=1, **labels), atol=1e-5)
    assert np.abs(given - found).max() > 1e-3
    small = Bundle.open(place, threads=1, batch=2)
    assert small.manifest.batches == (1, 2)
    np.testing.assert_array_equal(small.generate(seed=1, batch=1), bundle.generate(seed=1))
    for act in (lambda: small.generate(batch=3), lambda: Bundle.open(place, batch=4)):
        with pytest.raises(EngineError, match=r"^a batch of \d samples, expected 1 to \d as"):
            act()
    with pytest.raises(EngineError, match=r"batch is 1\.5, expected a number of samples"):
        bundle.generate(batch=1.5)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"has shape \(2,\), expected \(3,\) for the conditional"):
        bundle.generate(batch=3, class_labels=np.array([4, 5]))


def test_halves_at_other_sizes(tmp_path: Path) -> None:
    program = sample("fused-qkv", "cond-first").program
    plan = planned(program, "full", "wa-rs", "asc", "ast", window=Window(4))
    sched = schedule(program, plan)
    batch = {"batch": (1, 3)}
    place = compile_bundle(sched, tmp_path / "b", precision="fp16", dynamic=batch)
    three = sched.on(program.resized(3))
    alone = Bundle.open(compile_bundle(three, tmp_path / "c", precision="fp16"), threads=1)
    bundle = Bundle.open(place, threads=1)
    assert {slot.dtype for slot in bundle.manifest.slots} == {"float16"}
    for step in range(4):
        given = models.plain_kwargs(seed=step, batch=6)
        inputs = {"x": given["x"].numpy(), "t": given["t"].numpy()}  # type: ignore[attr-defined]
        found, expected = bundle.step(step, **inputs), alone.step(step, **inputs)
        assert isinstance(expected, np.ndarray)
        assert np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max()  # two of a half's


def test_steps_that_follow_each_other_are_of_one_size() -> None:
    bundle = Bundle.open(ranged("fused-qkv", "cond-first"), backend=NullBackend())
    program = sample("fused-qkv", "cond-first").program
    two, three = (
        {name: value.numpy() for name, value in program.resized(count).example.items()}
        for count in (2, 3)
    )
    reader = next(step for step in range(6) if bundle.manifest.bucket_of(step).reads)
    for step in range(reader):
        assert bundle.step(step, **two).shape == (4, 25, 16)
    with pytest.raises(EngineError, match=f"step {reader} reads slot .*, but it holds nothing"):
        bundle.step(reader, **three)
    for step in range(6):
        assert bundle.step(step, **three).shape == (6, 25, 16)
    nine = {name: np.concatenate([value, value, value]) for name, value in three.items()}
    with pytest.raises(EngineError, match="a batch of 9 samples, expected 1 to 5 as the bundle"):
        bundle.step(0, **nine)
    mixed_up = {**two, "t": three["t"]}
    with pytest.raises(EngineError, match=r"input 't' has shape \(6,\), expected \(4,\)"):
        bundle.step(0, **mixed_up)


def test_bundles_of_one_size_say_so() -> None:
    bundle = Bundle.open(sampling_bundle(), threads=1)
    assert bundle.manifest.batches == (1, 1)
    with pytest.raises(EngineError, match="a batch of 2 samples, expected 1 as the bundle was"):
        bundle.generate(batch=2)


class Averages(nn.Module):
    """Takes the mean over the batch, which no graph for several sizes holds."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * (1 / x.shape[0]) + t[:, None, None]


class Counts(nn.Module):
    """Has an operator for each sample."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.stack([row.sin() for row in x]) + t[:, None, None]


class Fixed(nn.Module):
    """Works at one size only."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x + t.view(4)[:, None, None]


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Averages, "takes a constant that isn't linear in the samples"),
        (Counts, "operators for 2 samples and "),
        (Fixed, "dynamic: the batch can't vary: Fixed can't be captured"),
    ],
)
def test_models_that_depend_on_the_size(module: type[nn.Module], told: str, tmp_path: Path) -> None:
    program = capture(module(), models.plain_kwargs())
    sched = schedule(program, planned(program, "full"))
    message = refused(
        LoweringError,
        tmp_path,
        lambda: compile_bundle(
            sched, tmp_path / "b", dynamic={"batch": (1, 4)}, cache=workshop() / "cache", jobs=1
        ),
    )
    assert told in message


@pytest.mark.parametrize(
    ("dynamic", "told"),
    [
        ({"height": (1, 2)}, "dynamic: 'height' can't vary, only 'batch' can"),
        ({"batch": (3, 2)}, "dynamic: batch is 3 to 2, expected a range within 1 to"),
        ({"batch": (0, 2)}, "dynamic: batch is 0 to 2, expected a range within 1 to"),
        ({"batch": (3, 8)}, "but the model was captured with 2 samples: capture it"),
    ],
)
def test_ranges_that_cannot_be(
    dynamic: dict[str, tuple[int, int]], told: str, tmp_path: Path
) -> None:
    program = sample("small", "cond-first").program
    sched = schedule(program, planned(program, "full"))
    act = lambda: compile_bundle(sched, tmp_path / "b", dynamic=dynamic)  # noqa: E731
    assert told in refused(LoweringError, tmp_path, act)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"batch": [1]}, "dynamic.batch: is [1], expected the least and the most"),
        ({"batch": [3, 2]}, "dynamic.batch: is [3, 2], expected the least and the most"),
        ({"batch": [3, 4]}, "dynamic.batch: is 3 to 4, expected 2 samples"),
        ({"axes": {}}, "dynamic.axes: the latents' batch isn't axis 0"),
        ({"axes": {"x": 1}}, "dynamic.axes: the latents' batch isn't axis 0"),
        ({"axes": {"x": 0, "no": 0}}, "names axis 0 of 'no', which has nothing"),
        ({"axes": {"x": 0, "t": 1}}, "names axis 1 of 't', which has the shape [4]"),
        ({"axes": {"x": -1}}, "dynamic.axes.x: is -1"),
    ],
)
def test_records_at_odds_with_the_shapes(edit: dict[str, object], told: str) -> None:
    text = (ranged("fused-qkv", "cond-first") / MANIFEST_FILE).read_text()
    document = json.loads(text)
    document["dynamic"].update(edit)
    del document["digest"]
    altered = json.dumps({**document, "digest": digest_of(document)})
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(altered)
    assert told in str(caught.value)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = demo_recording().capture()
    plan = tmp_path / "plan.json"
    planned(program, "full", "ast").save(plan)
    place = tmp_path / "bundle"
    given = ["compile", "demo", "--plan", str(plan), "-o", str(place), "--dynamic", "batch=1..3"]
    assert main(given) == 0
    assert "predicted for 3 samples: " in capsys.readouterr().out
    out = tmp_path / "out.npy"
    assert main(["run", str(place), "-o", str(out), "--batch", "3"]) == 0
    assert np.load(out).shape == (3, 1, 32, 32)
    capsys.readouterr()
    assert main(["verify", str(place)]) == 0
    assert "run all 2 steps at 1 and 3 samples" in capsys.readouterr().out
    assert main(["inspect", str(place)]) == 0
    assert "batch      1 to 3 samples; shapes are of 1\n" in capsys.readouterr().out
    assert main(["report", str(place), "-o", str(tmp_path / "r.html")]) == 0
    assert "1 to 3 samples" in (tmp_path / "r.html").read_text()
    assert main(["run", str(place), "-o", str(out), "--batch", "4"]) == 1
    assert "a batch of 4 samples, expected 1 to 3" in capsys.readouterr().err
    for text in ("batch", "batch=1", "height=1..2", "batch=0..2", "batch=a..2"):
        with pytest.raises(SystemExit):
            main([*given[:-1], text])
