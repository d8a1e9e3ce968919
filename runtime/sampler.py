"""Run a sampler that is a table: scheduler → coefficients a step → a few lines of numpy.

Most diffusion samplers are linear in the latents, the past model outputs and the noise:

    input_k = input_scale[k] * x_k
    m_k     = model(input_k, timesteps[k])
    x_{k+1} = sum_j latents[k][j] * x_{k-j} + sum_j outputs[k][j] * m_{k-j} + noise[k] * z_k

with x_0 = init_noise_scale * z, all z drawn from the standard normal distribution, and j below a
history J that is 1 for one-step samplers such as DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12)
and more for multistep ones such as DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095) and UniPC
(Zhao et al. 2023, arXiv 2302.04867). `ditc.export.sampler` reads the coefficients off a diffusers
scheduler.

Where the model also predicts how much noise a step adds, as v in the second half of its channels,
the factor of z_k is interpolated in log variance (Nichol and Dhariwal 2021, arXiv 2102.09672,
eq. 15), from `low` at v = -1 to `high` at v = 1:

    noise[k] * exp((low + (high - low) * (v_k + 1) / 2) / 2),   low, high = log_variance[k]
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from .errors import BundleError, EngineError
from .fields import (
    JsonValue,
    read_list,
    read_mapping,
    read_number,
    read_object,
    read_string,
)

__all__ = ["SamplerState", "SamplerTable"]

Array = npt.NDArray[np.float32]
Row = tuple[float, ...]


@dataclass(frozen=True)
class SamplerTable:
    """The coefficients of a linear sampler; the module's docstring has the formula.

    Attributes:
        scheduler: the name of the scheduler class the table was read from, for people to read.
        timesteps: [T], what the model is told at each step.
        init_noise_scale: the standard deviation of the initial latents.
        input_scale: [T], factor from the latents to the model's input.
        latents: [T][J], factors of x_k, x_{k-1}, …; zero for steps before the first.
        outputs: [T][J], factors of the model outputs m_k, m_{k-1}, …; zero before the first.
        noise: [T], factor of the noise; zero where the step draws none.
        log_variance: [T][2], log variance of the noise where the model predicts -1 and 1; None
            where the model doesn't predict it.

    Raises:
        BundleError: if the lengths don't agree, a number isn't finite, or a coefficient refers to a
            step before the first; the message names the field.
    """

    scheduler: str
    timesteps: Row
    init_noise_scale: float
    input_scale: Row
    latents: tuple[Row, ...]
    outputs: tuple[Row, ...]
    noise: Row
    log_variance: tuple[Row, ...] | None = None

    def __post_init__(self) -> None:
        if not self.timesteps:
            raise BundleError("sampler.timesteps: is empty, expected at least one step")
        _check_finite("init_noise_scale", (self.init_noise_scale,))
        for name in ("timesteps", "input_scale", "noise"):
            row: Row = getattr(self, name)
            _check_length(name, len(row), self.steps)
            _check_finite(name, row)
        for name in ("latents", "outputs"):
            self._check_rows(name, getattr(self, name))
        if self.log_variance is not None:
            _check_length("log_variance", len(self.log_variance), self.steps)
            for step, row in enumerate(self.log_variance):
                _check_length(f"log_variance[{step}]", len(row), 2)
                _check_finite(f"log_variance[{step}]", row)

    def _check_rows(self, name: str, rows: tuple[Row, ...]) -> None:
        _check_length(name, len(rows), self.steps)
        if not self.history:
            raise BundleError("sampler.latents[0]: is empty, expected at least one coefficient")
        for step, row in enumerate(rows):
            _check_length(f"{name}[{step}]", len(row), self.history)
            _check_finite(f"{name}[{step}]", row)
            if any(row[step + 1 :]):
                raise BundleError(
                    f"sampler.{name}[{step}]: weighs a step before the first, expected 0 "
                    f"after its first {step + 1}"
                )

    @property
    def steps(self) -> int:
        """Return how many times the model is evaluated, T."""
        return len(self.timesteps)

    @property
    def history(self) -> int:
        """Return how many latents and model outputs a step combines, J."""
        return len(self.latents[0])

    @property
    def stochastic(self) -> bool:
        """Return whether some step adds noise; step k does where `noise[k]` isn't 0."""
        return any(self.noise)

    def to_json(self) -> dict[str, JsonValue]:
        """Return the table as JSON values; `from_json` gives back an equal table, bit for bit."""
        learned: dict[str, JsonValue] = {}
        if self.log_variance is not None:
            learned["log_variance"] = [list(row) for row in self.log_variance]
        return {
            **learned,
            "scheduler": self.scheduler,
            "timesteps": list(self.timesteps),
            "init_noise_scale": self.init_noise_scale,
            "input_scale": list(self.input_scale),
            "latents": [list(row) for row in self.latents],
            "outputs": [list(row) for row in self.outputs],
            "noise": list(self.noise),
        }

    @classmethod
    def from_json(cls, value: object, where: str = "sampler") -> "SamplerTable":
        """Return the table that `to_json` wrote.

        Raises:
            BundleError: if a field is missing, unknown, of another type or length, or not finite.
        """
        given = {"log_variance": None, **read_mapping(value, where)}
        found = read_object(given, where, [field.name for field in fields(cls)])
        learned = found["log_variance"]
        return cls(
            scheduler=read_string(found["scheduler"], f"{where}.scheduler"),
            timesteps=_read_row(found["timesteps"], f"{where}.timesteps"),
            init_noise_scale=read_number(found["init_noise_scale"], f"{where}.init_noise_scale"),
            input_scale=_read_row(found["input_scale"], f"{where}.input_scale"),
            latents=read_list(found["latents"], f"{where}.latents", _read_row),
            outputs=read_list(found["outputs"], f"{where}.outputs", _read_row),
            noise=_read_row(found["noise"], f"{where}.noise"),
            log_variance=(
                None if learned is None else read_list(learned, f"{where}.log_variance", _read_row)
            ),
        )


class SamplerState:
    """A run of a sampler table: holds the latents and model outputs that later steps need.

    Steps go in order from 0; step 0 starts again at any time. Latents, model outputs and noise are
    float32 of one shape, any shape. A step's sum is taken in float64 and rounded once. Histories
    are copies, so callers may reuse their buffers. The latents given to a step are expected to be
    those that the step before returned: solvers with a corrector rely on it.
    """

    def __init__(self, table: SamplerTable) -> None:
        self.table = table
        self._next = 0
        self._latents: list[Array] = []
        self._outputs: list[Array] = []

    def model_input(self, k: int, latents: Array) -> Array:
        """Return what the model is given at step `k`: the scaled latents, float32.

        Raises:
            EngineError: if the table has no step `k`.
        """
        self._check_step(k)
        return _scaled(latents, self.table.input_scale[k]).astype(np.float32)

    def advance(
        self,
        k: int,
        latents: Array,
        model_output: Array,
        noise: Array | None = None,
        variance: Array | None = None,
    ) -> Array:
        """Return the latents after step `k`, a new float32 array.

        Args:
            k: the step, one after the last that was run, or 0.
            latents: x_k, the latents before the step, unscaled.
            model_output: m_k, the model's output with guidance applied, of the latents' shape.
            noise: z_k of the latents' shape, standard normal; unused where `table.noise[k]` is 0.
            variance: v_k of the latents' shape, what the model predicts of the noise's variance;
                unused where the table has no `log_variance`.

        Raises:
            EngineError: if `k` is out of turn, shapes differ, or a stochastic step has no noise or
                lacks the variance.
        """
        self._check_step(k)
        if k not in (0, self._next):
            raise EngineError(f"sampler step {k} is out of turn, expected step {self._next} or 0")
        _check_shape(k, "model output", model_output, latents)
        if self.table.noise[k]:
            self._check_noise(k, noise, latents)
        if k == 0:
            self._latents, self._outputs = [], []
        self._latents = self._remember(latents, self._latents)
        self._outputs = self._remember(model_output, self._outputs)
        terms = [
            *zip(self.table.latents[k], self._latents, strict=False),
            *zip(self.table.outputs[k], self._outputs, strict=False),
        ]
        if noise is not None and self.table.noise[k]:
            terms.append((self.table.noise[k], self._of_learned_variance(k, noise, variance)))
        total = np.zeros(np.shape(latents), np.float64)
        for factor, array in terms:
            if factor:
                total += _scaled(array, factor)
        self._next = k + 1
        return total.astype(np.float32)

    def snapshot(self) -> dict[str, Array]:
        """Return the latents and model outputs that later steps need, by name."""
        past = {f"latents.{age}": array for age, array in enumerate(self._latents)}
        return {**past, **{f"outputs.{age}": array for age, array in enumerate(self._outputs)}}

    def restore(self, step: int, snapshot: Mapping[str, Array]) -> None:
        """Go on at `step` with what `snapshot` returned before it."""
        ages = range(min(step, self.table.history))
        self._latents = [np.array(snapshot[f"latents.{age}"], np.float32) for age in ages]
        self._outputs = [np.array(snapshot[f"outputs.{age}"], np.float32) for age in ages]
        self._next = step

    def _of_learned_variance(self, k: int, noise: Array, variance: Array | None) -> Array:
        """Return the noise with the variance that the model predicts, if it does."""
        if self.table.log_variance is None:
            return noise
        if variance is None:
            raise EngineError(
                f"sampler step {k} of {self.table.scheduler} takes its variance from the model and "
                "was given none, expected the second half of the model's channels"
            )
        _check_shape(k, "variance", variance, noise)
        low, high = self.table.log_variance[k]
        log_variance = low + (high - low) * (_scaled(variance, 0.5) + 0.5)
        scaled: Array = (np.exp(log_variance / 2) * noise).astype(np.float32)
        return scaled

    def _remember(self, newest: Array, past: list[Array]) -> list[Array]:
        return [np.array(newest, np.float32), *past][: self.table.history]

    def _check_noise(self, k: int, noise: Array | None, latents: Array) -> None:
        if noise is None:
            raise EngineError(
                f"sampler step {k} of {self.table.scheduler} adds noise and was given none, "
                "expected standard normal noise of the latents' shape"
            )
        _check_shape(k, "noise", noise, latents)

    def _check_step(self, k: int) -> None:
        if not 0 <= k < self.table.steps:
            raise EngineError(
                f"the sampler has no step {k}, expected one of 0 to {self.table.steps - 1}"
            )


def _scaled(array: Array, factor: float) -> npt.NDArray[np.float64]:
    return np.multiply(array, factor, dtype=np.float64)


def _check_shape(step: int, name: str, array: Array, latents: Array) -> None:
    if np.shape(array) != np.shape(latents):
        raise EngineError(
            f"sampler step {step}: the {name} has shape {np.shape(array)}, "
            f"expected the latents' {np.shape(latents)}"
        )


def _check_length(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise BundleError(f"sampler.{name}: has {found} entries, expected {expected}")


def _check_finite(name: str, row: Row) -> None:
    for number in row:
        if not math.isfinite(number):
            raise BundleError(f"sampler.{name}: holds {number}, expected finite numbers")


def _read_row(value: object, where: str) -> Row:
    return read_list(value, where, read_number)
