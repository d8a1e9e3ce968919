"""Open-Sora's samplers, as tables, against the published definitions in float64."""

import numpy as np
import pytest
import torch

from ditc.export import sampler_table
from ditc.runtime.errors import LoweringError
from ditc.runtime.sampler import SamplerState
from ditc.tools.open_sora_sampling import RectifiedFlowScheduler, iddpm, latent_frames

SHAPE = (1, 4, 3, 5, 7)


def spaced(steps: int) -> list[int]:
    """Return the timesteps of a respaced process, as improved-diffusion counts them."""
    stride, place, taken = 999 / (steps - 1), 0.0, []
    for _ in range(steps):
        taken.append(round(place))
        place += stride
    return taken


@pytest.mark.parametrize("steps", [200, 100, 30, 7])
def test_iddpm_of_any_number_of_steps(steps: int) -> None:
    """Sample by eq. 10 and 11 of arXiv 2006.11239 and eq. 15 of arXiv 2102.09672."""
    times = spaced(steps)
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[times]
    before = np.concatenate([[1.0], kept[:-1]])
    beta = 1 - kept / before
    least = np.maximum((1 - before) / (1 - kept) * beta, 1e-20)
    table = sampler_table(iddpm(), steps)
    assert table.timesteps == tuple(float(t) for t in times[::-1])
    draw, state = np.random.default_rng(2), SamplerState(table)
    x = draw.standard_normal(SHAPE).astype(np.float32)
    exact = x.astype(np.float64)
    for k, i in enumerate(reversed(range(steps))):
        noise = draw.standard_normal(SHAPE).astype(np.float32)
        mean, variance = np.tanh(exact / 2 + k), np.tanh(exact - k)
        start = (exact - np.sqrt(1 - kept[i]) * mean) / np.sqrt(kept[i])
        centre = np.sqrt(before[i]) * beta[i] / (1 - kept[i]) * start
        centre += np.sqrt(1 - beta[i]) * (1 - before[i]) / (1 - kept[i]) * exact
        share = (variance + 1) / 2
        spread = np.exp((share * np.log(beta[i]) + (1 - share) * np.log(least[i])) / 2)
        told = state.model_input(k, x)
        given = np.tanh(told / 2 + k), noise, np.tanh(told - k)
        x = state.advance(k, x, *given)
        exact = centre + (spread * noise if i else 0)
        # The scheduler takes 1 - kept / before in float32, which is 1e-4 at the last steps.
        assert np.abs(x - exact).max() <= 3e-4 * np.abs(exact).max(), k


@pytest.mark.parametrize(
    ("height", "width", "frames"), [(240, 426, 51), (720, 1280, 102), (512, 512, 1)]
)
def test_rectified_flow(height: int, width: int, frames: int) -> None:
    scheduler = RectifiedFlowScheduler()
    scheduler.set_timesteps(30, height=height, width=width, num_frames=frames)
    table = sampler_table(scheduler, 30)
    depth = 1 if frames == 1 else frames // 17 * 5
    ratio = np.sqrt(height * width / 512**2) * np.sqrt(depth)
    plain = np.array([1 - k / 30 for k in range(30)])
    times = 1000 * ratio * plain / (1 + (ratio - 1) * plain)
    np.testing.assert_allclose(table.timesteps, times, rtol=1e-6)
    if (height, width, frames) == (512, 512, 1):
        np.testing.assert_allclose(table.timesteps, 1000 * plain, rtol=1e-6)
    lengths = (times - np.append(times[1:], 0)) / 1000
    np.testing.assert_allclose(np.array(table.outputs)[:, 0], lengths, atol=1e-6)
    assert table.latents == ((1.0,),) * 30
    assert not table.stochastic
    assert table.log_variance is None


def test_rectified_flow_moves_in_a_straight_line() -> None:
    scheduler = RectifiedFlowScheduler(use_timestep_transform=False)
    scheduler.set_timesteps(7)
    video = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    x = noise
    for timestep in scheduler.timesteps:
        x = scheduler.step(video - noise, timestep, x).prev_sample
    torch.testing.assert_close(x, video, rtol=0, atol=1e-6)


def test_what_a_schedule_needs_is_asked_for() -> None:
    scheduler = RectifiedFlowScheduler()
    with pytest.raises(ValueError, match="call set_timesteps with height, width and num_frames"):
        scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="num_frames is 16, expected 1 or at least 17"):
        scheduler.set_timesteps(5, height=64, width=64, num_frames=16)
    with pytest.raises(LoweringError, match="call set_timesteps on the scheduler with what it"):
        sampler_table(scheduler, 5)


def test_latent_frames() -> None:
    assert [latent_frames(n) for n in (1, 4, 5, 17, 18, 51, 52, 102)] == [1, 1, 2, 5, 6, 15, 16, 30]
