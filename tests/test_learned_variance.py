"""Noise whose variance the model predicts: DDPM with a learned range, tables against schedulers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor

from ditc.export import compile as compile_bundle
from ditc.export import sampler_table
from ditc.passes import capture, schedule
from ditc.runtime import Bundle
from ditc.runtime.errors import BundleError, EngineError, LoweringError
from ditc.runtime.sampler import SamplerState, SamplerTable
from ditc.tools.trajectory import Trajectory

from . import models
from .bundles import RECORDED, SHAPE, TABLE, Reference, make_weights, write_bundle
from .compiled import planned, tiny_dit

IMAGE, VIDEO = (2, 4, 5, 7), (1, 4, 3, 5, 7)
TOLERANCE = 1e-5
"""Of the largest latent: what a float32 scheduler itself rounds to."""


def learned(**config: object) -> DDPMScheduler:
    return DDPMScheduler(clip_sample=False, variance_type="learned_range", **config)


def model(x: np.ndarray, timestep: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a mean and a variance, both nonlinear contractions, the latter up to 1.3."""
    told = np.float32(timestep / 1000)
    return np.tanh(x / 2 + told), np.float32(1.3) * np.tanh(x - told)


@pytest.mark.parametrize("shape", [IMAGE, VIDEO], ids=["image", "video"])
@pytest.mark.parametrize("steps", [1, 2, 7, 200])
@pytest.mark.parametrize(
    "config",
    [
        {"timestep_spacing": "linspace"},
        {"timestep_spacing": "trailing", "beta_schedule": "squaredcos_cap_v2"},
        {"timestep_spacing": "leading", "prediction_type": "v_prediction"},
    ],
    ids=["iddpm", "cosine", "velocity"],
)
def test_a_whole_run_is_the_schedulers(
    config: dict[str, object], steps: int, shape: tuple[int, ...]
) -> None:
    scheduler = learned(**config)
    table = sampler_table(scheduler, steps)
    again = SamplerTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table
    scheduler.set_timesteps(steps)
    generator, draws = (torch.Generator().manual_seed(3) for _ in range(2))
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected, state = torch.from_numpy(x), SamplerState(table)
    for k, timestep in enumerate(scheduler.timesteps):
        output = torch.from_numpy(np.concatenate(model(expected.numpy(), float(timestep)), axis=1))
        expected = scheduler.step(output, timestep, expected, generator=generator).prev_sample
        noise = None
        if not torch.equal(generator.get_state(), draws.get_state()):
            noise = randn_tensor(shape, generator=draws, dtype=torch.float32).numpy()
        mean, variance = model(state.model_input(k, x), table.timesteps[k])
        x = state.advance(k, x, mean, noise, variance)
        assert np.abs(x - expected.numpy()).max() <= TOLERANCE * np.abs(x).max(), k
    assert table.stochastic == any(timestep > 0 for timestep in table.timesteps)


def test_columns_are_the_papers_bounds() -> None:
    """β̃ and β of the spaced process (arXiv 2102.09672, eq. 15 and 19), in float64."""
    table = sampler_table(learned(timestep_spacing="linspace"), 25)
    times = np.round(np.linspace(0, 999, 25)).astype(int)
    assert table.timesteps == tuple(float(t) for t in times[::-1])
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[times]
    before = np.concatenate([[1.0], kept[:-1]])
    beta = 1 - kept / before
    least = (1 - before) / (1 - kept) * beta
    assert table.log_variance is not None
    columns = np.array(table.log_variance)[::-1]
    # Float32 schedulers lose digits in 1 - kept / before, which is 0.02 here.
    np.testing.assert_allclose(columns[1:, 0], np.log(least[1:]), atol=2e-4)
    np.testing.assert_allclose(columns[1:, 1], np.log(beta[1:]), atol=2e-4)
    assert table.noise == (1.0,) * 24 + (0.0,)


LEARNED = replace(
    TABLE,
    noise=(1.0, 1.0, 1.0, 1.0, 0.0),
    log_variance=((-3.0, -1.0), (-4.0, -1.5), (-5.0, -2.0), (-6.0, -2.5), (0.0, 0.0)),
)


def by_hand(cfg: str | None, scale: float, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Sample the bundles of `bundles` in float64: the conditional half's variance, unguided."""
    reference, labels = Reference(make_weights(), double=True), RECORDED["class_labels"]
    xs, ms, channels = [np.asarray(x, np.float64)], [], SHAPE[1]
    for k in range(LEARNED.steps):
        scaled = np.asarray(xs[0] * LEARNED.input_scale[k], np.float32)
        batch = np.concatenate([scaled, scaled]) if cfg else scaled
        out = reference.step(k, batch, np.full(2, int(LEARNED.timesteps[k])), labels)
        mean, variance = (np.asarray(part, np.float64) for part in np.split(out, [channels], 1))
        if cfg is not None:
            yes, no = (0, 1) if cfg == "cond-first" else (1, 0)
            mean = mean[no : no + 1] + scale * (mean[yes : yes + 1] - mean[no : no + 1])
            variance = variance[yes : yes + 1]
        low, high = LEARNED.log_variance[k]
        share = (variance + 1) / 2
        factor = np.exp((share * high + (1 - share) * low) / 2) * LEARNED.noise[k]
        ms = [mean, *ms][:2]
        total = sum(a * past for a, past in zip(LEARNED.latents[k], xs, strict=False))
        total = total + sum(b * past for b, past in zip(LEARNED.outputs[k], ms, strict=False))
        xs = [total + factor * noise[k], *xs][:2]
    return xs[0]


@pytest.mark.parametrize("cfg", ["cond-first", "uncond-first", None])
def test_a_bundle_takes_the_conditional_variance(cfg: str | None, tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", cfg, LEARNED, double=True), threads=1)
    draw = np.random.default_rng(5)
    shape = (1 if cfg else 2, *SHAPE[1:])
    x = 0.3 * draw.standard_normal(shape).astype(np.float32)
    noise = draw.standard_normal((LEARNED.steps, *shape)).astype(np.float32)
    scale = 1.5 if cfg else 1.0
    found = bundle.generate(guidance_scale=scale, latents=x, noise=noise)
    expected = by_hand(cfg, scale, x, noise)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("cfg", ["cond-first", "uncond-first"])
def test_guidance_in_the_graph_leaves_the_variance_alone(cfg: str, tmp_path: Path) -> None:
    """Against the eager module, guided by hand, and the scheduler's own steps."""
    steps, scale, width = 4, 3.0, models.CHANNELS
    module, kwargs = models.pixart(1), models.pixart_kwargs()
    program = capture(module, kwargs, cfg=cfg)
    sched = schedule(program, planned(program, *["full"] * steps))
    scheduler = learned(timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    shape = (len(kwargs["hidden_states"]) // 2, *kwargs["hidden_states"].shape[1:])
    x = torch.from_numpy(np.random.default_rng(2).standard_normal(shape).astype(np.float32))
    start, noise = x.numpy().copy(), np.zeros((steps, *shape), np.float32)
    generator, draws = (torch.Generator().manual_seed(7) for _ in range(2))
    yes, no = (0, 1) if cfg == "cond-first" else (1, 0)
    for k, timestep in enumerate(scheduler.timesteps):
        given = {**kwargs, "hidden_states": torch.cat([x, x])}
        given["timestep"] = torch.full_like(kwargs["timestep"], int(timestep))
        with torch.no_grad():
            halves = module(**given).sample.chunk(2)
        mean = halves[no] + scale * (halves[yes] - halves[no])
        output = torch.cat([mean[:, :width], halves[yes][:, width:]], dim=1)
        x = scheduler.step(output, timestep, x, generator=generator).prev_sample
        if not torch.equal(generator.get_state(), draws.get_state()):
            noise[k] = randn_tensor(shape, generator=draws, dtype=torch.float32).numpy()
    for fused in (False, True):
        place = compile_bundle(sched, tmp_path / str(fused), sampler=scheduler, fuse_guidance=fused)
        bundle = Bundle.open(place, threads=1)
        found = bundle.generate(guidance_scale=scale, latents=start, noise=noise)
        assert np.abs(found - x.numpy()).max() <= 1e-4 * np.abs(found).max(), fused
    assert noise.any()


def test_a_search_samples_as_a_bundle_does(tmp_path: Path) -> None:
    program = tiny_dit().program
    table = replace(LEARNED, timesteps=tuple(float(t) for t in LEARNED.timesteps))
    trajectory = Trajectory(program, table, 2.0, seed=4)
    draw = np.random.default_rng(4)
    shape = (1, *program.latents.shape[1:])
    x = draw.standard_normal(shape, np.float32) * np.float32(table.init_noise_scale)
    output = np.random.default_rng(1).standard_normal((2, 2 * shape[1], *shape[2:]))
    output = output.astype(np.float32)
    trajectory.advance(0, torch.from_numpy(output))
    mean, variance = np.split(output, 2, axis=1)
    state = SamplerState(table)
    noise = draw.standard_normal(shape, np.float32)
    expected = state.advance(0, x, mean[1:] + 2 * (mean[:1] - mean[1:]), noise, variance[:1])
    np.testing.assert_allclose(trajectory.latents, expected, rtol=0, atol=1e-5)


def test_a_model_without_variance_is_refused(tmp_path: Path) -> None:
    program = tiny_dit().program
    sched = schedule(program, planned(program, "full", "full"))
    with pytest.raises(LoweringError, match=r"learned_range.*whose output sample is \[2, 3, 10, 1"):
        compile_bundle(sched, tmp_path / "bundle", sampler=learned())
    assert not (tmp_path / "bundle").exists()


def test_a_step_without_the_variance_is_refused() -> None:
    state, x = SamplerState(LEARNED), np.zeros(IMAGE, np.float32)
    with pytest.raises(EngineError, match="step 0 of ByHand takes its variance from the model"):
        state.advance(0, x, x, x)
    with pytest.raises(EngineError, match=r"the variance has shape \(2, 3, 5, 7\), expected"):
        state.advance(0, x, x, x, x[:, :3])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0.0, 0.0]], "has 1 entries, expected 5"),
        ([[0.0]] * 5, r"\[0\]: has 1 entries, expected 2"),
        ([[0.0, float("inf")]] * 5, r"\[0\]: holds inf"),
        (3, ": expected a list, found a int"),
    ],
)
def test_malformed_columns_are_refused(value: object, message: str) -> None:
    with pytest.raises(BundleError, match=f"^sampler.log_variance:?.*{message}"):
        SamplerTable.from_json({**LEARNED.to_json(), "log_variance": value})
