"""Read a diffusers scheduler off as a table: scheduler → coefficients of every step.

Most schedulers look back a few steps only, and a probe's answers are the table. One with a
corrector (UniPC, Zhao et al. 2023, arXiv 2302.04867, algorithm 5) goes on from latents of its own,
which depend on all steps before. What it takes from the far past is then a multiple of what the
step before took from it, so that a multiple of x_k, which that step returned, stands for the far
past, and the near past is all that is left beside it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ditc.runtime.errors import LoweringError
from ditc.runtime.sampler import SamplerState, SamplerTable

from .probe import OTHERWISE, Array, Probe, Response, Scheduler, prepared

__all__ = ["Scheduler", "sampler_table"]

MAX_HISTORY = 4
ZERO = 1e-9  # of the largest coefficient, what float64 elimination may leave of the far past
LINEAR = 1e-5  # of the largest term: schedulers that go through float32 round to 1e-7 of it
CLOSE = 1e-4  # of the largest latent: a float32 scheduler sums terms of 160 times a latent
AMPLITUDES = (1.0, 1e3)
SHAPE = (2, 5, 3, 7)
SEED = 0


def sampler_table(
    scheduler: object, steps: int, *, step_kwargs: Mapping[str, object] | None = None
) -> SamplerTable:
    """Return the coefficients of `scheduler` over a run of `steps` model evaluations.

    The scheduler isn't changed. One whose `set_timesteps` was called is taken as it is set;
    otherwise a copy is set to `steps`. The table is checked against the scheduler over a whole
    float32 run with a nonlinear model, to 1e-4 of the largest latent: schedulers lose 5e-5 where
    they cancel float32 terms that are sigma_max, up to 160, times the latents that remain.

    Args:
        scheduler: a diffusers scheduler.
        steps: model evaluations, `len(scheduler.timesteps)`; Heun's are more than its steps.
        step_kwargs: further arguments of the scheduler's `step`, such as `{"eta": 1.0}` for DDIM.

    Raises:
        LoweringError: if it is no scheduler, is set to another count, isn't linear, draws noise
            that can't be drawn again, looks back more than four steps, or disagrees with its table.
    """
    if not isinstance(scheduler, Scheduler):
        raise LoweringError(f"{type(scheduler).__name__} is no diffusers scheduler: pass one")
    probe = Probe(prepared(scheduler, steps), step_kwargs or {})
    response = probe.response()
    _check_linear(probe, response)
    table = _table(probe, response, _rows(probe, response))
    _check_run(probe, table)
    return table


def _check_linear(probe: Probe, response: Response) -> None:
    """Refuse a scheduler that answers random inputs, small or large, other than linearly."""
    for k in np.flatnonzero(~np.isfinite(response.latents + response.outputs).all(1))[:1]:
        raise LoweringError(
            f"{probe.name} itself returns NaN or infinity at step {k} of this schedule; "
            f"change its config, such as final_sigmas_type, or {OTHERWISE}"
        )
    random = np.random.default_rng(SEED)
    for amplitude in AMPLITUDES:
        x, m = amplitude * random.standard_normal((2, probe.steps, 64))
        inputs, answers = probe.answers(x, m)
        terms = np.abs(response.latents) @ np.abs(x) + np.abs(response.outputs) @ np.abs(m)
        off = _relative(answers - response.latents @ x - response.outputs @ m, terms)
        off = np.maximum(off, _relative(inputs - response.scale[:, None] * x, inputs))
        for k in np.flatnonzero(~(off <= LINEAR))[:1]:
            raise LoweringError(
                f"{probe.name} isn't linear in the latents and model outputs, step {k} is off by "
                f"{off[k]:.1g} of its terms at inputs of {amplitude:g}; {probe.remedy()}"
            )


def _relative(off: Array, size: Array) -> Array:
    """Return the largest entry of each row of `off` over that of `size`."""
    largest: Array = np.maximum(np.abs(size).max(1), np.finfo(np.float64).tiny)
    share: Array = np.abs(off).max(1) / largest
    return share


@dataclass(frozen=True)
class _Row:
    """A step's coefficients [J], of which `carried` of x_k, x_{k-1}, … stand for the far past."""

    latents: Array
    outputs: Array
    carried: Array


def _rows(probe: Probe, response: Response) -> list[_Row]:
    """Return the coefficients of all steps, of the least history that holds them."""
    for history in range(1, MAX_HISTORY + 1):
        carried = [_carried(response, k, history) for k in range(probe.steps)]
        known = [factors for factors in carried if factors is not None]
        if len(known) == probe.steps:
            return [_row(response, k, history, factors) for k, factors in enumerate(known)]
    raise LoweringError(
        f"{probe.name} looks back more than {MAX_HISTORY} steps: lower its order, or {OTHERWISE}"
    )


def _carried(response: Response, k: int, history: int) -> Array | None:
    """Return the fewest factors of x_k, x_{k-1}, … whose far past is that of step k, if any."""
    far = max(0, k + 1 - history)
    past = np.hstack([response.latents[:, :far], response.outputs[:, :far]])
    size = max(np.abs(response.latents[k]).max(), np.abs(response.outputs[k]).max())
    for count in range(min(history, k) + 1):
        basis = past[k - count : k][::-1].T
        factors = np.linalg.lstsq(basis, past[k], rcond=None)[0] if count else np.zeros(0)
        if np.abs(past[k] - basis @ factors).max(initial=0.0) <= ZERO * size:
            return factors
    return None


def _row(response: Response, k: int, history: int, carried: Array) -> _Row:
    near = [k - j for j in range(min(history, k + 1))]
    before = [k - i for i in range(1, len(carried) + 1)]
    latents, outputs = np.zeros(history), np.zeros(history)
    latents[: len(near)] = (response.latents[k] - carried @ response.latents[before])[near]
    outputs[: len(near)] = (response.outputs[k] - carried @ response.outputs[before])[near]
    latents[: len(carried)] += carried
    return _Row(latents, outputs, carried)


def _noise(probe: Probe, noise: Array, draw: Array | None, k: int, carried: Array) -> float:
    """Return the factor of the noise that step k draws, earlier noise being in the latents."""
    before = [k - i for i in range(1, len(carried) + 1)]
    earlier = carried[:, None] * noise[before]
    answer = noise[k] - earlier.sum(0)
    size = max(np.abs(noise[k]).max(), np.abs(earlier).max(initial=0.0))
    factor = 0.0 if draw is None else float(answer @ draw / (draw @ draw))
    rest = np.abs(answer if draw is None else answer - factor * draw).max()
    if not rest <= LINEAR * size:
        raise LoweringError(
            f"{probe.name} step {k} answers zeros with up to {rest:.2g} that is no multiple of "
            f"noise drawn from its generator in that step; {probe.remedy()}"
        )
    return factor


def _log_variance(
    probe: Probe, least: list[float], most: list[float]
) -> tuple[tuple[float, float], ...]:
    """Return the log variances of noise of these factors; zeros where there is none."""
    for k, (low, high) in enumerate(zip(least, most, strict=True)):
        if min(low, high) < 0 or (low > 0) != (high > 0):
            raise LoweringError(
                f"{probe.name} step {k} takes {low:.2g} to {high:.2g} of its noise as the model "
                f"predicts, expected factors above zero; {probe.remedy()}"
            )
    return tuple(
        (2 * math.log(low), 2 * math.log(high)) if low else (0.0, 0.0)
        for low, high in zip(least, most, strict=True)
    )


def _table(probe: Probe, response: Response, rows: list[_Row]) -> SamplerTable:
    def factors(noise: Array) -> list[float]:
        draws = response.draws
        return [_noise(probe, noise, draws[k], k, row.carried) for k, row in enumerate(rows)]

    noise, learned = factors(response.noise), None
    if response.most_noise is not None:
        learned = _log_variance(probe, noise, factors(response.most_noise))
        noise = [float(factor > 0) for factor in noise]
    return SamplerTable(
        scheduler=probe.name,
        timesteps=_floats(probe.scheduler.timesteps.double().numpy()),
        init_noise_scale=float(getattr(probe.scheduler, "init_noise_sigma", 1.0)),
        input_scale=_floats(response.scale),
        latents=tuple(_floats(row.latents) for row in rows),
        outputs=tuple(_floats(row.outputs) for row in rows),
        noise=tuple(noise),
        log_variance=learned,
    )


def _floats(array: Array) -> tuple[float, ...]:
    return tuple(float(number) for number in array)


def _check_run(probe: Probe, table: SamplerTable) -> None:
    """Refuse a table that leads elsewhere than its scheduler, in a float32 run of a tanh model.

    Each step alone is held to the latents around it, the whole run to its largest latent: samplers
    that go down from a standard deviation of 100 lose digits in float32, whoever runs them. The
    model is a contraction, so that it adds nothing to that.
    """
    random = np.random.default_rng(SEED)
    first = (table.init_noise_scale * random.standard_normal(SHAPE)).astype(np.float32)
    mix = np.linalg.qr(random.standard_normal((SHAPE[-1], SHAPE[-1])))[0].astype(np.float32)

    def model(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.tanh(x @ mix / 2)

    def variance(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        predicted: npt.NDArray[np.float32] = np.tanh(x @ mix.T)
        return predicted

    def whole_output(_: int, x: torch.Tensor) -> torch.Tensor:
        parts = (model, variance) if probe.learns_variance else (model,)
        return torch.from_numpy(np.concatenate([part(x.numpy()) for part in parts], axis=1))

    run = probe.run(torch.from_numpy(first), lambda _, x: x, whole_output)
    alone, whole = SamplerState(table), SamplerState(table)
    before, x, largest = first, first, 0.0
    for k, (latents, draw) in enumerate(zip(run.latents, run.draws, strict=True)):
        after, noise = latents.numpy(), None if draw is None else draw.numpy()
        given = alone.model_input(k, before)
        once = alone.advance(k, before, model(given), noise, variance(given))
        given = whole.model_input(k, x)
        x = whole.advance(k, x, model(given), noise, variance(given))
        size = max(np.abs(before).max(), np.abs(after).max())
        largest = max(largest, size)
        off = max(np.abs(once - after).max() / size, np.abs(x - after).max() / largest)
        if not off <= CLOSE:
            raise LoweringError(
                f"{probe.name} disagrees with its table, step {k} of a float32 run is off by "
                f"{off:.1g} of the largest latent, expected at most {CLOSE:g}; {probe.remedy()}"
            )
        before = after
