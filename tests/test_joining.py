"""Variants of a bundle: each as if it were alone, the weights of all once."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.torch import save_file

from ditc.export import compile as compile_bundle
from ditc.export import compile_variants
from ditc.export.variants import swap_weights
from ditc.passes import Schedule, Window, capture, schedule
from ditc.runtime import Bundle
from ditc.runtime.errors import BundleError, LoweringError
from ditc.runtime.fields import digest_of
from ditc.runtime.variants import read_index, read_manifest, variants_of
from ditc.runtime.weights import map_tensors
from ditc.tools.cli import main
from ditc.tools.models import demo_recording

from . import models
from .compiled import arrays, planned, small_bundle, workshop
from .kills import bytes_of
from .test_compiling import refused

SIZES = {"20x20": models.SIZE, "16x16": 8}


def kwargs_of(size: int, seed: int = 0) -> models.Kwargs:
    kwargs = models.dit_kwargs(seed=seed, batch=2)
    return {**kwargs, "hidden_states": models.noise(2, models.CHANNELS, size, size, seed=seed)}


@lru_cache
def schedules(seed: int = 0) -> dict[str, Schedule]:
    """Return one model's schedules at two sizes, whose position tables differ."""
    module = models.dit(layers=1, seed=seed)
    found = {}
    for name, size in SIZES.items():
        program = capture(module, kwargs_of(size), "cond-first")
        methods = ("full", "wa-rs", "ast") if size == 8 else ("full", "ast", "asc", "ast")
        found[name] = schedule(program, planned(program, *methods, window=Window(3)))
    return found


@lru_cache
def several() -> Path:
    return compile_variants(schedules(), workshop() / "several")


def test_each_is_what_it_is_alone(tmp_path: Path) -> None:
    assert variants_of(several()) == ("20x20", "16x16")
    assert variants_of(small_bundle()) == ()
    for name, sched in schedules().items():
        alone = Bundle.open(compile_bundle(sched, tmp_path / name), threads=1)
        bundle = Bundle.open(several(), threads=1, variant=name)
        assert bundle.manifest.variant == name
        assert bundle.steps == sched.steps
        for step in range(sched.steps):
            inputs = arrays(sched.program, kwargs_of(SIZES[name], seed=step))
            np.testing.assert_array_equal(bundle.step(step, **inputs), alone.step(step, **inputs))


def test_weights_lie_on_disk_once(tmp_path: Path) -> None:
    module = models.dit(layers=2)
    alone = sum(value.nbytes for value in module.state_dict().values())
    found = {}
    for name, size in SIZES.items():
        program = capture(module, kwargs_of(size), "cond-first")
        found[name] = schedule(program, planned(program, "full"))
    place = compile_variants(
        found, tmp_path / "b", lambda _, sched, part: compile_bundle(sched, part, prologue=False)
    )
    stored = sum(array.nbytes for array in map_tensors(place / "weights.safetensors").values())
    tables = sum(
        array.nbytes
        for name, array in map_tensors(place / "weights.safetensors").items()
        if name not in module.state_dict() and not name.endswith("_transposed")
    )
    assert stored - tables <= alone
    assert tables <= 4 * 1024 * 3
    assert len(list(place.glob("*.safetensors"))) == 3  # the store, and two of conditioning


def test_graphs_lie_beside_the_store_and_are_sound() -> None:
    root = several()
    assert all(path.is_file() for path in root.iterdir())
    graphs = sorted(root.glob("*.onnx"))
    assert {path.name.partition(".")[0] for path in graphs} == set(SIZES)
    for path in graphs:
        onnx.checker.check_model(str(path), full_check=True)
    index = read_index(root)
    assert index is not None
    assert set(index.files) == {path.name for path in root.iterdir()} - {"manifest.json"}
    for name in SIZES:
        assert set(read_manifest(root, name).files) < set(index.files)


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    assert bytes_of(compile_variants(schedules(), tmp_path / "again")) == bytes_of(several())
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_variant_has_to_be_named() -> None:
    with pytest.raises(BundleError, match="holds the variants 20x20, 16x16: name one, by --var"):
        Bundle.open(several())
    with pytest.raises(BundleError, match="no variant '9x9', expected one of 20x20, 16x16"):
        Bundle.open(several(), variant="9x9")
    with pytest.raises(BundleError, match="holds no variants, so there is no '20x20'"):
        Bundle.open(small_bundle(), variant="20x20")


def test_weights_of_all_variants_are_swapped_at_once(tmp_path: Path) -> None:
    other = models.dit(layers=1, seed=7)
    tensors = {name: value for name, value in other.state_dict().items() if "pos_embed" not in name}
    tensors = {name: tensors.get(name, value) for name, value in other.named_parameters()}
    save_file({name: value.detach() for name, value in tensors.items()}, tmp_path / "o.safetensors")
    swapped = swap_weights(several(), tmp_path / "o.safetensors", tmp_path / "swapped")
    expected = compile_variants(schedules(seed=7), tmp_path / "expected")
    for name in SIZES:
        manifest = read_manifest(swapped, name)
        assert manifest.weights_sha256 is not None
        for path in manifest.files:
            assert (swapped / path).read_bytes() == (expected / path).read_bytes(), path
        Bundle.open(swapped, threads=1, variant=name)


def test_models_that_differ(tmp_path: Path) -> None:
    one, other = schedules()["20x20"], schedules(seed=7)["16x16"]
    told = refused(
        LoweringError, tmp_path, lambda: compile_variants({"a": one, "b": other}, tmp_path / "x")
    )
    assert told.startswith("weight ")
    assert "differs between variants a and b: compile both from one model" in told
    program = capture(models.small(), models.plain_kwargs(), "cond-first")
    small = schedule(program, planned(program, "full"))
    told = refused(
        LoweringError, tmp_path, lambda: compile_variants({"a": one, "b": small}, tmp_path / "x")
    )
    assert "variants of a bundle are of one model, target and precision" in told
    told = refused(LoweringError, tmp_path, lambda: compile_variants({}, tmp_path / "x"))
    assert told == "no variants were given, expected at least one"
    for name in ("", "../a", "a.b", "a b"):
        told = refused(
            BundleError, tmp_path, lambda name=name: compile_variants({name: one}, tmp_path / "x")
        )
        assert "expected letters, digits" in told


def altered(root: Path, place: Path, edit: Callable[[dict[str, object]], object]) -> Path:
    """Copy a bundle, with its index edited and the digest made right again."""
    place.mkdir()
    for path in root.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    document = json.loads((place / "manifest.json").read_text())
    edit(document)
    document.pop("digest")
    document["digest"] = digest_of(document)
    (place / "manifest.json").write_text(json.dumps(document))
    return place


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda d: d.update(variants=[]), "variants: are [], expected names, each once"),
        (lambda d: d.update(variants=["a", "a"]), "expected names, each once"),
        (lambda d: d.update(variants=["../a"]), "variants[0]: is '../a', expected letters"),
        (lambda d: d["files"].pop("16x16.manifest.json"), "'16x16.manifest.json' is missing"),
        (lambda d: d["files"].pop("16x16.b00.onnx"), "'16x16.b00.onnx' is missing"),
        (
            lambda d: d["files"].update({"16x16.b00.onnx": d["files"]["16x16.b01.onnx"]}),
            "16x16.manifest.json: tells of another 16x16.b00.onnx than manifest.json does",
        ),
        (lambda d: d.update(colour=1), "unknown field 'colour'"),
    ],
)
def test_an_index_at_odds(
    edit: Callable[[dict[str, object]], object], told: str, tmp_path: Path
) -> None:
    place = altered(several(), tmp_path / "b", edit)
    with pytest.raises(BundleError) as caught:
        Bundle.open(place, variant="16x16")
    assert told in str(caught.value)


def test_an_index_that_was_changed(tmp_path: Path) -> None:
    place = altered(several(), tmp_path / "b", lambda _: None)
    text = (place / "manifest.json").read_text()
    (place / "manifest.json").write_text(text.replace("16x16", "16x17", 1))
    with pytest.raises(BundleError, match="the digest isn't that of its content"):
        Bundle.open(place, variant="20x20")


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = {}
    for side in (16, 32):
        program = demo_recording(1, side, side).capture()
        plans[side] = tmp_path / f"{side}.json"
        planned(program, "full", "ast").save(plans[side])
    place = tmp_path / "bundle"
    given = ["compile", "demo", "-o", str(place)]
    each = [part for side in (32, 16) for part in ("--variant", f"{side}x{side}={plans[side]}")]
    assert main([*given, *each]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{place}: variants 32x32, 16x16, ")
    assert main(["inspect", str(place)]) == 0
    out = capsys.readouterr().out
    assert "variant    16x16: latents [2, 1, 16, 16], 2 steps, 2 buckets of " in out
    assert main(["inspect", str(place), "--variant", "16x16"]) == 0
    assert "input      hidden_states float32 [2, 1, 16, 16]" in capsys.readouterr().out
    site = program.sites[0].name
    assert main(["inspect", str(place), "--variant", "16x16", "--why", "1", site]) == 0
    assert capsys.readouterr().out.startswith(f"step 1, {site}: ast\n")
    assert main(["inspect", str(place), "--why", "1", site]) == 1
    assert "give the plan of one, 32x32.plan.json or 16x16.plan.json" in capsys.readouterr().err
    assert main(["verify", str(place)]) == 0
    out = capsys.readouterr().out
    assert f"{place}, variant 32x32: " in out
    assert f"{place}, variant 16x16: " in out
    array = tmp_path / "a.npy"
    for side in (16, 32):
        assert main(["run", str(place), "--variant", f"{side}x{side}", "-o", str(array)]) == 0
        assert np.load(array).shape == (1, 1, side, side)
    page = tmp_path / "r.html"
    assert main(["report", str(place), "--variant", "16x16", "-o", str(page)]) == 0
    assert "bundle 16x16" in page.read_text()
    capsys.readouterr()
    assert main(["run", str(place), "-o", str(array)]) == 1
    assert "holds the variants 32x32, 16x16: name one" in capsys.readouterr().err
    assert main([*given, *each, *each[:2]]) == 1
    assert "--variant: a resolution is given twice" in capsys.readouterr().err
    assert main([*given, "--variant", f"16x16={plans[32]}"]) == 1
    assert "plan is for latents" in capsys.readouterr().err
    assert main([*given, "--variant", f"15x15={plans[32]}"]) == 1
    assert "demo: height is 15, expected a multiple of 2" in capsys.readouterr().err
    for text in ("16x16", "16=p.json", "ax16=p.json", "16x16="):
        with pytest.raises(SystemExit):
            main([*given, "--variant", text])
