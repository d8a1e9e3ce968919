"""Open-Sora's text-to-video pipeline: words in, a video's latents or frames out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor

from .open_sora import STDiT2, STDiT3
from .open_sora_layers import split
from .open_sora_sampling import RectifiedFlowScheduler, iddpm, latent_frames
from .progress import progress

__all__ = ["OpenSoraPipeline", "Video"]

PIXELS = 8
"""Pixels of a latent, along height and along width."""
Pixels = npt.NDArray[np.uint8]


class TextEncoder(Protocol):
    """T5 and its tokenizer: captions in, words `[n, words, channels]` and their mask out."""

    def __call__(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]: ...


@dataclass(frozen=True)
class Video:
    """What the pipeline returns.

    Attributes:
        latents: `[n, channels, frames, height, width]`.
        frames: uint8 `[n, frames, height, width, 3]`, None without an autoencoder.
    """

    latents: torch.Tensor
    frames: Pixels | None


class OpenSoraPipeline:
    """Samples videos with Open-Sora's denoisers.

    Both halves of guidance are in one batch, conditional first, and share the caption's mask. Of a
    denoiser with a learned variance the conditional half's is taken. All of the noise's channels
    are guided; the published configuration of 1.1 leaves the fourth (`cfg_channel=3`).

    Attributes:
        transformer: the denoiser.
        scheduler: `iddpm()` for 1.1, a `RectifiedFlowScheduler` for 1.2, by default.
        vae: decodes one frame at a time, as 1.1's; None where latents are all that is wanted.
        text_encoder: makes words of captions; None where words are given.
    """

    def __init__(
        self,
        transformer: STDiT2 | STDiT3,
        scheduler: DDPMScheduler | RectifiedFlowScheduler | None = None,
        vae: AutoencoderKL | None = None,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        self.transformer = transformer
        self.flows = isinstance(transformer, STDiT3)
        self.scheduler = scheduler or (RectifiedFlowScheduler() if self.flows else iddpm())
        self.vae, self.text_encoder = vae, text_encoder
        self._silent = True

    def set_progress_bar_config(self, disable: bool = False) -> None:
        """Say whether the steps' progress is shown."""
        self._silent = disable

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        num_frames: int = 17,
        height: int = 240,
        width: int = 426,
        fps: float = 24.0,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.0,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
    ) -> Video:
        """Sample.

        Args:
            prompt: captions, where there is a text encoder.
            prompt_embeds: words, `[n, words, channels]`; the checkpoint's own words of no caption
                if neither is given.
            prompt_attention_mask: which words count, `[n, words]`; all if None.
            num_frames: of the video.
            height: in pixels.
            width: in pixels.
            fps: frames a second.
            num_inference_steps: model evaluations; 100 for 1.1 and 30 for 1.2 as published.
            guidance_scale: s in `u + s (c - u)`; one half is computed where it is 1.
            generator: of the noise.
            latents: initial latents, else noise.

        Raises:
            ValueError: if there is a prompt and no text encoder, or sizes don't fit.
        """
        words, mask = self._words(prompt, prompt_embeds, prompt_attention_mask)
        count, guided = words.shape[0], guidance_scale != 1.0
        if guided:
            words = torch.cat([words, self._no_caption(words)])
            mask = None if mask is None else torch.cat([mask, mask])
        shape = self._latents_shape(count, num_frames, height, width)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, dtype=words.dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, expected {shape}")
        told = self._told(len(words), num_frames, height, width, fps)
        if isinstance(self.scheduler, RectifiedFlowScheduler):
            self.scheduler.set_timesteps(
                num_inference_steps, height=height, width=width, num_frames=num_frames
            )
        else:
            self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self._shown(self.scheduler.timesteps):
            output = self.transformer(
                hidden_states=torch.cat([latents, latents]) if guided else latents,
                timestep=torch.full((len(words),), float(timestep)),
                encoder_hidden_states=words,
                encoder_attention_mask=mask,
                **told,
                return_dict=False,
            )[0]
            output = self._guided(output, guidance_scale if guided else None, shape[1])
            extra = {} if self.flows else {"generator": generator}
            latents = self.scheduler.step(output, timestep, latents, **extra, return_dict=False)[0]
        return Video(latents, None if self.vae is None else self._frames(latents))

    def _words(
        self,
        prompt: str | Sequence[str] | None,
        words: torch.Tensor | None,
        mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if words is not None:
            return words, mask
        if prompt is None:
            return self.transformer.y_embedder.y_embedding[None], mask
        if self.text_encoder is None:
            raise ValueError("a prompt was given, and there is no text encoder: give prompt_embeds")
        return self.text_encoder([prompt] if isinstance(prompt, str) else prompt)

    def _no_caption(self, words: torch.Tensor) -> torch.Tensor:
        """Return the words of no caption, as many as of the captions."""
        none = self.transformer.y_embedder.y_embedding.to(words.dtype)
        if none.shape != words.shape[1:]:
            raise ValueError(
                f"words have shape {list(words.shape)}, expected {list(none.shape)} a caption"
            )
        return none.expand_as(words)

    def _latents_shape(self, count: int, frames: int, height: int, width: int) -> tuple[int, ...]:
        if frames < 1 or height < PIXELS or width < PIXELS:
            raise ValueError(f"the video is {frames} x {height} x {width}, which has no latents")
        depth = latent_frames(frames) if self.flows else frames
        channels: int = self.transformer.config.in_channels
        return (count, channels, depth, height // PIXELS, width // PIXELS)

    def _told(
        self, batch: int, frames: int, height: int, width: int, fps: float
    ) -> dict[str, torch.Tensor]:
        """Return what the denoiser is told of the video."""
        numbers = {"height": height, "width": width, "fps": fps}
        if not self.flows:
            numbers |= {"num_frames": frames, "ar": height / width}
        return {name: torch.full((batch,), float(number)) for name, number in numbers.items()}

    def _guided(self, output: torch.Tensor, scale: float | None, channels: int) -> torch.Tensor:
        """Return what the scheduler takes: guided, with the conditional half's variance if any."""
        mean, variance = output[:, :channels], output[:, channels:]
        if scale is not None:
            conditional, unconditional = mean.chunk(2)
            mean = unconditional + scale * (conditional - unconditional)
            variance = variance.chunk(2)[0]
        return mean if self.flows else torch.cat([mean, variance], dim=1)

    def _frames(self, latents: torch.Tensor) -> Pixels:
        assert self.vae is not None
        factor = self.vae.config.scaling_factor
        stills = latents.transpose(1, 2).flatten(0, 1) / factor
        decoded = [self.vae.decode(still[None]).sample for still in stills]
        pixels = ((torch.cat(decoded) / 2 + 0.5).clamp(0, 1) * 255).round().byte()
        frames: Pixels = split(pixels.permute(0, 2, 3, 1), 0, (len(latents), -1)).numpy()
        return frames

    def _shown(self, timesteps: torch.Tensor) -> Iterable[torch.Tensor]:
        if self._silent:
            yield from timesteps
            return
        with progress("sample", len(timesteps)) as advance:
            for timestep in timesteps:
                yield timestep
                advance()
