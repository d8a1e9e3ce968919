"""Sample with a program in torch: latents in, what the model is asked, model outputs back."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from ditc.passes import Program
from ditc.runtime.guidance import guide, learned_variance
from ditc.runtime.sampler import SamplerState, SamplerTable

__all__ = ["Trajectory"]


class Trajectory:
    """One sampling run, driven from outside step by step.

    Attributes:
        latents: `[samples, …]` float32, as they are before the next step.
    """

    def __init__(
        self, program: Program, table: SamplerTable, guidance_scale: float, seed: int
    ) -> None:
        self._program = program
        self._table = table
        self._scale = guidance_scale
        self._state = SamplerState(table)
        self._draw = np.random.default_rng(seed)
        self._shape = (program.samples, *program.latents.shape[1:])
        noise = self._draw.standard_normal(self._shape, np.float32)
        self.latents: npt.NDArray[np.float32] = noise * np.float32(table.init_noise_scale)

    @property
    def samples(self) -> int:
        """How many samples are denoised at once."""
        return self._shape[0]

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Return all tensors that the run goes on from."""
        arrays = {"current": self.latents, **self._state.snapshot()}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def restore(self, step: int, snapshot: Mapping[str, torch.Tensor]) -> None:
        """Go on at `step` as the run did of which `snapshot` was taken."""
        arrays = {name: tensor.numpy() for name, tensor in snapshot.items()}
        self.latents = np.array(arrays["current"], np.float32)
        self._state.restore(step, arrays)
        for done in range(step):
            self._noise(done)

    def inputs(self, step: int) -> Mapping[str, torch.Tensor]:
        """Return the program's inputs at a step, by name."""
        values = dict(self._program.example)
        scaled = self._state.model_input(step, self.latents)
        whole = np.concatenate([scaled, scaled]) if self._program.cfg else scaled
        for entry in self._program.inputs:
            if entry.role == "latents":
                values[entry.name] = torch.from_numpy(whole).to(entry.dtype)
            elif entry.role == "timestep":
                told = self._program.told.of(self._table.timesteps[step])
                values[entry.name] = torch.full(entry.shape, told, dtype=entry.dtype)
        return values

    def advance(self, step: int, output: torch.Tensor) -> None:
        """Go on from the model's output at a step, `[batch, channels, …]`."""
        cfg, predicted = self._program.cfg, output.numpy()
        guided = guide(cfg, predicted, self._scale, self._shape)
        variance = learned_variance(cfg, predicted, self._shape)
        noise = self._noise(step)
        self.latents = self._state.advance(step, self.latents, guided, noise, variance)

    def _noise(self, step: int) -> npt.NDArray[np.float32] | None:
        """Draw the noise of a step, if it takes any."""
        if not self._table.noise[step]:
            return None
        return self._draw.standard_normal(self._shape, np.float32)
