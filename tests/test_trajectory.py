"""Sampling driven from outside: what the model is asked, and going on where a run was left."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from ditc.export import sampler_table
from ditc.tools.trajectory import Trajectory

from .samples import LAYOUTS, sample

STEPS = 5
SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}


def output(step: int) -> torch.Tensor:
    """Return what a model of two samples, both halves, might say."""
    made = np.random.default_rng(step).standard_normal((4, 3, 10, 10))
    return torch.from_numpy(made.astype(np.float32))


@pytest.mark.parametrize("cfg", LAYOUTS)
def test_the_model_is_asked_with_scaled_latents_in_both_halves(cfg: str) -> None:
    program = sample("dit", cfg).program
    table = sampler_table(EulerDiscreteScheduler(), STEPS)
    trajectory = Trajectory(program, table, 2.0, seed=3)
    start = np.random.default_rng(3).standard_normal((2, 3, 10, 10), np.float32)
    np.testing.assert_array_equal(trajectory.latents, start * np.float32(table.init_noise_scale))
    trajectory.advance(0, output(0))
    asked = trajectory.inputs(1)
    assert list(asked) == list(program.example)
    scaled = trajectory.latents * table.input_scale[1]
    assert table.input_scale[1] != 1
    expected = np.concatenate([scaled, scaled])
    np.testing.assert_allclose(asked["hidden_states"].numpy(), expected, rtol=1e-6)
    assert asked["timestep"].dtype == program.example["timestep"].dtype
    assert asked["timestep"].tolist() == [int(table.timesteps[1])] * 4
    assert torch.equal(asked["class_labels"], program.example["class_labels"])


@pytest.mark.parametrize(
    "scheduler",
    [DDPMScheduler(clip_sample=False), DPMSolverMultistepScheduler(**SDE)],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_a_run_goes_on_where_it_was_left(scheduler: object) -> None:
    """Solvers remember model outputs, and draw noise: both are as if nothing had been left."""
    program, table = sample("dit", "cond-first").program, sampler_table(scheduler, STEPS)
    assert table.stochastic
    whole, left = Trajectory(program, table, 2.0, seed=3), []
    for step in range(STEPS):
        left.append({name: value.clone() for name, value in whole.snapshot().items()})
        whole.advance(step, output(step))
    for start, snapshot in enumerate(left):
        again = Trajectory(program, table, 2.0, seed=3)
        again.restore(start, snapshot)
        for step in range(start, STEPS):
            again.advance(step, output(step))
        np.testing.assert_array_equal(again.latents, whole.latents, err_msg=f"from step {start}")
