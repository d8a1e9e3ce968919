"""A bundle's steps and its generation, against numpy; errors with what to do."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ditc.runtime import Bundle, NullBackend
from ditc.runtime.entries import InputInfo, OutputInfo
from ditc.runtime.errors import BundleError, EngineError
from ditc.runtime.sampler import SamplerTable

from .bundles import (
    NOISY,
    OUTPUT,
    RECORDED,
    RESIDUAL,
    SHAPE,
    STEPS,
    TABLE,
    Array,
    Floats,
    Reference,
    arrays_for,
    make_manifest,
    make_weights,
    write_bundle,
    write_manifest,
)

HALF = (1, *SHAPE[1:])


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return bundles that tests only read, by kind."""
    base = tmp_path_factory.mktemp("bundles")
    return {
        "cond-first": write_bundle(base / "cond", "cond-first"),
        "uncond-first": write_bundle(base / "uncond", "uncond-first"),
        "none": write_bundle(base / "none", None),
        "noisy": write_bundle(base / "noisy", "cond-first", NOISY),
        "double": write_bundle(base / "double", "cond-first", double=True),
        "loopless": write_bundle(base / "loopless", sampler=None),
    }


def opened(root: Path) -> Bundle:
    return Bundle.open(root, threads=1)


def null(root: Path) -> tuple[Bundle, NullBackend]:
    backend = NullBackend()
    return Bundle.open(root, backend=backend), backend


def step(bundle: Bundle, k: int, **changes: Any) -> Floats:
    out = bundle.step(k, **{**arrays_for(k), **changes})
    assert isinstance(out, np.ndarray)
    return np.asarray(out, np.float32)


# Steps.


def test_steps_match_numpy_over_two_rounds(roots: dict[str, Path]) -> None:
    bundle = opened(roots["cond-first"])
    for _ in range(2):
        reference = Reference(make_weights())
        for k in range(STEPS):
            expected = reference.step(k, **arrays_for(k))
            np.testing.assert_allclose(step(bundle, k), expected, rtol=1e-6, atol=1e-6)
    assert bundle.steps == STEPS


def test_several_outputs_come_by_name(tmp_path: Path) -> None:
    manifest = replace(
        make_manifest(), outputs=(*make_manifest().outputs, OutputInfo("more", (1,), "float32"))
    )
    write_bundle(tmp_path / "b")
    bundle, _ = null(write_manifest(tmp_path / "b", manifest))
    out = bundle.step(0, **arrays_for(0))
    assert isinstance(out, dict)
    assert {name: array.shape for name, array in out.items()} == {"sample": SHAPE, "more": (1,)}


def test_a_bucket_gets_only_the_inputs_it_takes(tmp_path: Path) -> None:
    full, shared, rest = make_manifest().buckets
    shared = replace(shared, inputs=("hidden_states",))
    write_bundle(tmp_path / "b")
    bundle, backend = null(
        write_manifest(tmp_path / "b", replace(make_manifest(), buckets=(full, shared, rest)))
    )
    step(bundle, 0)
    step(bundle, 1)
    assert [(name, sorted(arrays)) for name, arrays in backend.calls] == [
        ("full", ["class_labels", "hidden_states", "timestep"]),
        ("shared", ["hidden_states"]),
    ]


def test_results_belong_to_the_caller(roots: dict[str, Path]) -> None:
    bundle = opened(roots["cond-first"])
    given = arrays_for(0)
    first = step(bundle, 0, **given)
    kept = first.copy()
    step(bundle, 1)
    step(bundle, 2)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(given["hidden_states"], arrays_for(0)["hidden_states"])


def test_kinds_are_cast_where_nothing_is_lost(roots: dict[str, Path]) -> None:
    bundle, backend = null(roots["cond-first"])
    step(
        bundle,
        0,
        hidden_states=np.ones(SHAPE)[..., ::-1],
        timestep=[3, 4],
        class_labels=np.array([1, 2], np.uint8),
    )
    _, arrays = backend.calls[0]
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "hidden_states": "float32",
        "timestep": "int64",
        "class_labels": "int64",
    }
    assert all(array.flags.c_contiguous for array in arrays.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_states": np.zeros(SHAPE, np.int64)}, "'hidden_states' has dtype int64, expected"),
        ({"timestep": np.zeros(2)}, "'timestep' has dtype float64, expected int64; convert"),
        ({"timestep": np.array([True, False])}, "'timestep' has dtype bool, expected int64"),
        ({"timestep": ["a", "b"]}, "'timestep' has dtype <U1, expected int64"),
        ({"timestep": np.array([None, None])}, "'timestep' has dtype object"),
        ({"timestep": np.array([2**63, 0], np.uint64)}, "'timestep' holds integers beyond int64"),
        ({"hidden_states": np.zeros(HALF)}, r"'hidden_states' has shape \(1, 2, 3, 5\), expected"),
        ({"timestep": np.int64(3)}, r"'timestep' has shape \(\), expected \(2,\)"),
        ({"mask": np.zeros(1)}, "unknown input 'mask', expected hidden_states, timestep, class_l"),
        ({OUTPUT: np.zeros(SHAPE)}, f"unknown input '{OUTPUT}'"),
        (
            {"hidden_states": np.full(SHAPE, 1e300)},
            "'hidden_states' as float32 has 60 values that are NaN or infinite",
        ),
    ],
)
def test_step_refuses_inputs(
    roots: dict[str, Path], changes: dict[str, Array], message: str
) -> None:
    bundle, backend = null(roots["cond-first"])
    with pytest.raises(EngineError, match=message):
        step(bundle, 0, **changes)
    assert backend.calls == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_step_refuses_numbers_that_are_not_finite(roots: dict[str, Path], bad: float) -> None:
    bundle, _ = null(roots["cond-first"])
    hidden_states = np.zeros(SHAPE)
    hidden_states[1, 0, 2, 4] = bad
    message = r"input 'hidden_states' has 1 values that are NaN .*, the first at \(1, 0, 2, 4\)"
    with pytest.raises(EngineError, match=message):
        step(bundle, 0, hidden_states=hidden_states)


def test_step_refuses_a_missing_input(roots: dict[str, Path]) -> None:
    bundle, _ = null(roots["cond-first"])
    with pytest.raises(EngineError, match="input 'timestep' is missing, expected hidden_states, "):
        bundle.step(0, hidden_states=np.zeros(SHAPE), class_labels=[0, 1])


@pytest.mark.parametrize("k", [-1, 5, 10**6])
def test_step_out_of_range(roots: dict[str, Path], k: int) -> None:
    bundle, _ = null(roots["cond-first"])
    with pytest.raises(EngineError, match=f"there is no step {k}, expected one of 0 to 4"):
        bundle.step(k, **arrays_for(0))


# Slots.


def test_a_fresh_bundle_has_no_writes(roots: dict[str, Path]) -> None:
    bundle, _ = null(roots["cond-first"])
    message = f"step 1 reads slot '{OUTPUT}' as step 0 writes it, but it holds nothing; run step 0"
    with pytest.raises(EngineError, match=message):
        step(bundle, 1)


def test_a_write_that_was_skipped_is_missed(roots: dict[str, Path]) -> None:
    bundle, _ = null(roots["cond-first"])
    step(bundle, 0)
    message = f"step 3 reads slot '{OUTPUT}' as step 2 writes it, but it holds what step 0 wrote; "
    with pytest.raises(EngineError, match=message + "run step 2 and then the steps up to 3"):
        step(bundle, 3)


def test_a_step_that_reads_nothing_needs_nothing(roots: dict[str, Path]) -> None:
    bundle, _ = null(roots["cond-first"])
    step(bundle, 4)
    with pytest.raises(EngineError, match="step 1 reads slot"):
        step(bundle, 1)


def test_going_back_forgets_later_writes(roots: dict[str, Path]) -> None:
    bundle, _ = null(roots["cond-first"])
    for k in (0, 1, 2, 3):
        step(bundle, k)
    step(bundle, 3)
    step(bundle, 2)
    step(bundle, 3)
    message = f"step 1 reads slot '{OUTPUT}' as step 0 writes it, but it holds nothing"
    with pytest.raises(EngineError, match=message):
        step(bundle, 1)
    step(bundle, 0)
    step(bundle, 1)


def test_skipping_a_step_that_writes_nothing_is_fine(roots: dict[str, Path]) -> None:
    bundle, _ = null(roots["cond-first"])
    for k in (0, 2, 3):
        step(bundle, k)


def test_reset_forgets_all_writes(roots: dict[str, Path]) -> None:
    bundle, _ = null(roots["cond-first"])
    step(bundle, 0)
    bundle.reset()
    with pytest.raises(EngineError, match="holds nothing"):
        step(bundle, 1)


def test_a_failed_step_leaves_its_slots_void(roots: dict[str, Path]) -> None:
    bundle = opened(roots["cond-first"])
    step(bundle, 0)
    with pytest.raises(EngineError, match="bucket 'rest': ONNX Runtime failed"):
        step(bundle, 2, class_labels=np.array([99, 99]))
    with pytest.raises(EngineError, match=r"step 3 reads slot .* step 2 writes it.*holds nothing"):
        step(bundle, 3)
    with pytest.raises(EngineError, match="step 1 reads slot"):
        step(bundle, 1)
    step(bundle, 2)
    step(bundle, 3)


# Generation.


def expected_latents(
    cfg: str | None,
    table: SamplerTable,
    scale: float,
    labels: Array,
    x: Floats,
    noise: Floats | None = None,
    double: bool = False,
) -> Floats:
    """Sample in float64, as the formulas stand in the sampler's docstring."""
    reference = Reference(make_weights(), double)
    xs, ms = [np.asarray(x, np.float64)], []
    for k in range(STEPS):
        scaled = np.asarray(xs[0] * table.input_scale[k], np.float32)
        batch = np.concatenate([scaled, scaled]) if cfg else scaled
        out = reference.step(k, batch, np.full(2, int(table.timesteps[k])), labels)
        out = np.asarray(out[:, : SHAPE[1]], np.float64)
        if cfg == "cond-first":
            out = out[1:] + scale * (out[:1] - out[1:])
        if cfg == "uncond-first":
            out = out[:1] + scale * (out[1:] - out[:1])
        ms = [out, *ms][:2]
        terms = [a * x for a, x in zip(table.latents[k], xs, strict=False)]
        terms += [b * m for b, m in zip(table.outputs[k], ms, strict=False)]
        if noise is not None:
            terms.append(table.noise[k] * noise[k])
        xs = [np.sum(terms, axis=0), *xs][:2]
    return np.asarray(xs[0], np.float32)


def initial(seed: int, shape: tuple[int, ...] = HALF) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(1.5)


def assert_close(found: Floats, expected: Floats) -> None:
    """Compare float32 runs of five steps of the same arithmetic in another order."""
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("cfg", ["cond-first", "uncond-first"])
def test_generate_guides_in_both_orders(roots: dict[str, Path], cfg: str) -> None:
    found = opened(roots[cfg]).generate(seed=3, guidance_scale=2.5)
    assert_close(found, expected_latents(cfg, TABLE, 2.5, RECORDED["class_labels"], initial(3)))


def test_generate_repeats_and_seeds_differ(roots: dict[str, Path]) -> None:
    bundle = opened(roots["cond-first"])
    first = bundle.generate(seed=1)
    other = bundle.generate(seed=2)
    np.testing.assert_array_equal(bundle.generate(seed=1, guidance_scale=4.0), first)
    assert not np.allclose(first, other)


def test_generate_after_single_steps(roots: dict[str, Path]) -> None:
    bundle = opened(roots["cond-first"])
    expected = bundle.generate(seed=1)
    step(bundle, 0)
    step(bundle, 2)
    np.testing.assert_array_equal(bundle.generate(seed=1), expected)


@pytest.mark.parametrize(
    ("cfg", "labels", "negative", "full"),
    [
        ("cond-first", [5], None, [5, 9]),
        ("uncond-first", [5], None, [3, 5]),
        ("cond-first", [5], [6], [5, 6]),
        ("uncond-first", [5], [6], [6, 5]),
        ("cond-first", None, [6], [3, 6]),
        ("uncond-first", None, [6], [6, 9]),
        ("cond-first", [7, 8], None, [7, 8]),
        ("uncond-first", [7, 8], None, [7, 8]),
    ],
)
def test_conditioning_fills_the_halves(
    roots: dict[str, Path],
    cfg: str,
    labels: list[int] | None,
    negative: list[int] | None,
    full: list[int],
) -> None:
    bundle = opened(roots[cfg])
    given = {} if labels is None else {"class_labels": labels}
    against = None if negative is None else {"class_labels": negative}
    found = bundle.generate(0, 3.0, negative=against, **given)
    assert_close(found, expected_latents(cfg, TABLE, 3.0, np.array(full), initial(0)))


def test_generate_without_guidance(roots: dict[str, Path]) -> None:
    bundle = opened(roots["none"])
    expected = expected_latents(None, TABLE, 1.0, np.array([1, 2]), initial(4, SHAPE))
    for scale in (None, 1.0):
        assert_close(bundle.generate(4, scale, class_labels=[1, 2]), expected)


def test_learned_variance_is_left_out(roots: dict[str, Path]) -> None:
    found = opened(roots["double"]).generate(seed=3, guidance_scale=2.5)
    labels = RECORDED["class_labels"]
    assert_close(found, expected_latents("cond-first", TABLE, 2.5, labels, initial(3), double=True))


def test_given_latents_and_noise(roots: dict[str, Path]) -> None:
    draw = np.random.default_rng(11)
    latents = draw.standard_normal(HALF).astype(np.float32)
    noise = draw.standard_normal((STEPS, *HALF)).astype(np.float32)
    found = opened(roots["noisy"]).generate(
        guidance_scale=2.0, latents=latents.astype(np.float64), noise=noise
    )
    labels = RECORDED["class_labels"]
    assert_close(found, expected_latents("cond-first", NOISY, 2.0, labels, latents, noise))


def test_noise_comes_from_the_seed_in_the_order_of_steps(roots: dict[str, Path]) -> None:
    bundle = opened(roots["noisy"])
    draw = np.random.default_rng(5)
    x = draw.standard_normal(HALF, np.float32) * np.float32(1.5)
    noise = np.zeros((STEPS, *HALF), np.float32)
    for k in (0, 2, 3):
        noise[k] = draw.standard_normal(HALF, np.float32)
    expected = bundle.generate(latents=x, noise=noise)
    np.testing.assert_array_equal(bundle.generate(seed=5), expected)


def test_callback_sees_every_step(roots: dict[str, Path]) -> None:
    seen: list[tuple[int, int, Floats]] = []

    def note(k: int, total: int, latents: Floats) -> None:
        seen.append((k, total, latents.copy()))
        latents[...] = 0

    bundle = opened(roots["cond-first"])
    found = bundle.generate(seed=1, callback=note)
    assert [(k, total) for k, total, _ in seen] == [(k, STEPS) for k in range(STEPS)]
    np.testing.assert_array_equal(seen[-1][2], found)
    np.testing.assert_array_equal(bundle.generate(seed=1), found)


def test_model_gets_scaled_latents_twice_and_the_timestep(roots: dict[str, Path]) -> None:
    bundle, backend = null(roots["cond-first"])
    bundle.generate(seed=0)
    names = [name for name, _ in backend.calls]
    assert names == ["full", "shared", "rest", "shared", "full"]
    for k, (_, arrays) in enumerate(backend.calls):
        np.testing.assert_array_equal(arrays["timestep"], np.full(2, int(TABLE.timesteps[k])))
        np.testing.assert_array_equal(*np.split(arrays["hidden_states"], 2))
    first = backend.calls[0][1]["hidden_states"]
    np.testing.assert_array_equal(first[:1], initial(0) * np.float32(0.5))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("cond-first", {"class_labels": [1, 2, 3]}, r"shape \(3,\), expected \(1,\) for the cond"),
        ("cond-first", {"class_labels": [1.5]}, "'class_labels' has dtype float64, expected int64"),
        ("cond-first", {"mask": [1]}, "unknown conditioning 'mask', expected class_labels"),
        ("cond-first", {"timestep": [1, 2]}, "unknown conditioning 'timestep'"),
        ("cond-first", {"negative": {"mask": [1]}}, "unknown negative conditioning 'mask'"),
        ("cond-first", {"negative": {"class_labels": [1, 2]}}, r"shape \(2,\), expected \(1,\)"),
        (
            "cond-first",
            {"negative": {"class_labels": [1]}, "class_labels": [1, 2]},
            "'class_labels' was given in full, so negative 'class_labels' has no place",
        ),
        ("cond-first", {"guidance_scale": np.nan}, "guidance_scale is nan, expected a finite"),
        ("cond-first", {"latents": np.zeros(SHAPE)}, r"'latents' has shape .*expected \(1, 2, 3"),
        ("cond-first", {"latents": np.full(HALF, np.nan)}, "input 'latents' has 30 values that"),
        ("noisy", {"noise": np.zeros(HALF)}, r"'noise' has shape .*expected \(5, 1, 2, 3, 5\)"),
        ("none", {"guidance_scale": 4.0}, "is 4.0, but the bundle has no guidance, expected None"),
        ("none", {"negative": {"class_labels": [1]}}, "but the bundle has no guidance"),
        ("none", {"class_labels": [1]}, r"'class_labels' has shape \(1,\), expected \(2,\)"),
    ],
)
def test_generate_refuses(
    roots: dict[str, Path], kind: str, arguments: dict[str, Any], message: str
) -> None:
    bundle, backend = null(roots[kind])
    with pytest.raises(EngineError, match=message):
        bundle.generate(**arguments)
    assert backend.calls == []


def test_conditioning_without_a_batch_has_no_halves(tmp_path: Path) -> None:
    latents, timestep, _ = make_manifest().inputs
    table = InputInfo("class_labels", (7,), "int64", "condition")
    manifest = replace(make_manifest(), inputs=(latents, timestep, table))
    root = write_bundle(tmp_path / "b")
    save_file({"class_labels": np.arange(7)}, root / "conditioning.safetensors")
    bundle, backend = null(write_manifest(root, manifest))
    bundle.generate()
    np.testing.assert_array_equal(backend.calls[0][1]["class_labels"], np.arange(7))
    bundle.generate(class_labels=np.arange(7) + 1)
    np.testing.assert_array_equal(backend.calls[-1][1]["class_labels"], np.arange(7) + 1)
    with pytest.raises(EngineError, match="'class_labels' has no halves; give it whole"):
        bundle.generate(negative={"class_labels": [1]})


def test_generate_needs_a_sampler(roots: dict[str, Path]) -> None:
    bundle, _ = null(roots["loopless"])
    with pytest.raises(
        BundleError,
        match=r"has no sampler .*: attach it to its pipeline, use step\(\) in a loop of your own, "
        r"or compile without --no-sampler \(sampler= in Python\)",
    ):
        bundle.generate()


def test_generate_names_the_step_that_breaks(roots: dict[str, Path]) -> None:
    bundle = opened(roots["cond-first"])
    with pytest.raises(EngineError, match=r"step [1-4]: the model's output has .* NaN or infinite"):
        bundle.generate(latents=np.full(HALF, 3e38))
    with pytest.raises(EngineError, match=r"step 0: the latents has .* NaN or infinite"):
        bundle.generate(guidance_scale=1e39)


def test_output_unlike_the_latents(tmp_path: Path) -> None:
    manifest = replace(make_manifest(), outputs=(OutputInfo("sample", (2, 7), "float32"),))
    root = write_bundle(tmp_path / "b")
    bundle, _ = null(write_manifest(root, manifest))
    with pytest.raises(
        EngineError, match=r"first output has shape \(2, 7\), expected \(2, 2, 3, 5"
    ):
        bundle.generate()


# Opening.


def damage_weights(root: Path) -> None:
    path = root / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate_graph(root: Path) -> None:
    path = root / "full.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def link_weights(root: Path) -> None:
    path = root / "weights.safetensors"
    path.rename(root / "elsewhere")
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, "weights.safetensors: has the SHA-256 .* it was altered, copy or compile"),
        (truncate_graph, r"full.onnx: has \d+ bytes, expected \d+; it was cut short or altered"),
        (link_weights, "weights.safetensors: is a symbolic link"),
        (lambda root: (root / "rest.onnx").unlink(), "rest.onnx: is missing, expected a file"),
        (lambda root: (root / "manifest.json").unlink(), "is no bundle: it holds no manifest.json"),
    ],
)
def test_damaged_bundles_are_refused(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    root = write_bundle(tmp_path / "b")
    damage(root)
    with pytest.raises(BundleError, match=message):
        Bundle.open(root)


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=re.escape(f"{tmp_path / 'gone'}: is no folder")):
        Bundle.open(tmp_path / "gone")


def test_another_target_needs_a_backend(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "b")
    write_manifest(root, replace(make_manifest(), target="openvino"))
    with pytest.raises(BundleError, match="target is 'openvino', and this ditc runs 'onnx'"):
        Bundle.open(root)
    assert null(root)[0].steps == STEPS


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ({"other": np.zeros(2)}, "holds nothing for 'class_labels', expected int64"),
        ({"class_labels": np.zeros(2)}, "holds float64 .* for 'class_labels', expected int64"),
        ({"class_labels": np.zeros(3, np.int64)}, r"holds int64 \(3,\) for 'class_labels'"),
    ],
)
def test_recorded_conditioning_must_fit(
    tmp_path: Path, recorded: dict[str, Array], message: str
) -> None:
    root = write_bundle(tmp_path / "b")
    save_file(recorded, root / "conditioning.safetensors")
    write_manifest(root, make_manifest())
    with pytest.raises(BundleError, match=message):
        Bundle.open(root)


def test_bundle_moves_with_its_folder(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "b")
    before = opened(root).generate(seed=1)
    moved = root.rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(opened(moved).generate(seed=1), before)


def test_slots_named_in_the_manifest_are_those_written(roots: dict[str, Path]) -> None:
    bundle, _ = null(roots["cond-first"])
    assert [slot.name for slot in bundle.manifest.slots] == [OUTPUT, RESIDUAL]


@pytest.mark.parametrize("seed", [-1, 1.5, "one", None])
def test_seeds_are_whole_numbers(roots: dict[str, Path], seed: Any) -> None:
    with pytest.raises(EngineError, match=f"seed is {seed}, expected an integer of at least 0"):
        opened(roots["cond-first"]).generate(seed=seed)


@pytest.mark.parametrize("scale", ["4", np.ones(2)])
def test_guidance_scales_are_numbers(roots: dict[str, Path], scale: Any) -> None:
    with pytest.raises(EngineError, match="expected a finite number"):
        opened(roots["cond-first"]).generate(guidance_scale=scale)


def test_rows_of_several_lengths(roots: dict[str, Path]) -> None:
    name = next(iter(RECORDED))
    with pytest.raises(EngineError, match=f"input '{name}' is no array"):
        opened(roots["cond-first"]).generate(**{name: [[1.0], [1.0, 2.0]]})  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [-1, 0, 10**11])
def test_a_count_of_threads_that_is_none(roots: dict[str, Path], threads: int) -> None:
    with pytest.raises(EngineError, match=f"threads is {threads}, expected an integer from 1"):
        Bundle.open(roots["cond-first"], threads=threads)
