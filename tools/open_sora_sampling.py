"""Open-Sora's samplers: IDDPM of 1.1, rectified flow of 1.2."""

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput

__all__ = ["RectifiedFlowScheduler", "iddpm", "latent_frames"]

SQUARE = 512 * 512
"""Pixels of a frame whose timesteps aren't moved."""
FRAMES, LATENT_FRAMES = 17, 5
"""Frames that 1.2's autoencoder makes into so many of its latents."""


def iddpm() -> DDPMScheduler:
    """Return the scheduler of Open-Sora 1.0 and 1.1: IDDPM with a learned range of variances.

    Its timesteps are evenly spaced from 999 to 0, whatever their number, and its betas are those
    of the spaced process (Nichol and Dhariwal 2021, arXiv 2102.09672).
    """
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        variance_type="learned_range",
        clip_sample=False,
        timestep_spacing="linspace",
    )


def latent_frames(frames: int) -> int:
    """Return how many frames of latents 1.2's autoencoder makes of a video's."""
    whole, rest = divmod(frames, FRAMES)
    return whole * LATENT_FRAMES + -(-rest // 4)


class RectifiedFlowScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """The scheduler of Open-Sora 1.2: Euler steps from noise to the video, which is t = 0.

    The model's output is the velocity from noise to video. Larger and longer videos have their
    timesteps moved towards noise, `t' = r t / (1 + (r - 1) t)`, with r the root of their pixels
    over 512² times the root of their latent frames.
    """

    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(  # diffusers keeps the arguments as config
        self,
        num_train_timesteps: int = 1000,  # noqa: ARG002
        use_timestep_transform: bool = True,  # noqa: ARG002
    ) -> None:
        self.num_inference_steps: int | None = None
        self.init_noise_sigma = 1.0
        self.timesteps = torch.empty(0)

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
    ) -> None:
        """Set the schedule.

        Args:
            num_inference_steps: model evaluations.
            device: where the timesteps go.
            height: of the video in pixels.
            width: of the video in pixels.
            num_frames: of the video, one or at least 17.

        Raises:
            ValueError: if the video's sizes are needed and missing, or it has 2 to 16 frames, for
                which no transform is defined.
        """
        whole = self.config.num_train_timesteps
        times = 1.0 - torch.arange(num_inference_steps, dtype=torch.float64) / num_inference_steps
        if self.config.use_timestep_transform:
            if height is None or width is None or num_frames is None:
                raise ValueError(
                    "timesteps depend on the video: call set_timesteps with height, width and "
                    "num_frames, or build the scheduler with use_timestep_transform=False"
                )
            frames = 1 if num_frames == 1 else num_frames // FRAMES * LATENT_FRAMES
            if not frames:
                raise ValueError(f"num_frames is {num_frames}, expected 1 or at least {FRAMES}")
            ratio = (height * width / SQUARE * frames) ** 0.5
            times = ratio * times / (1 + (ratio - 1) * times)
        self.timesteps = (whole * times).float().to(device)
        self.num_inference_steps = num_inference_steps

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Return the latents after the step at `timestep`, which is one of `timesteps`.

        Args:
            model_output: the velocity, of the latents' shape.
            timestep: of this step.
            sample: the latents.
            return_dict: whether to return an output object; else a tuple.
        """
        index = int((self.timesteps - timestep).abs().argmin())
        after = self.timesteps[index + 1] if index + 1 < len(self.timesteps) else 0.0
        length = float(self.timesteps[index] - after) / self.config.num_train_timesteps
        moved = sample + length * model_output
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)
