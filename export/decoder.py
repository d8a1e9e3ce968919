"""Compile an autoencoder's decoder: latents of one picture in, its pixels out.

Scaling and shift of the latents and the mapping to 0…255 are in the graph. Videos whose
autoencoder takes pictures are decoded frame by frame.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from ditc.passes import Plan, Program, capture, schedule
from ditc.passes.fingerprint import program_digest
from ditc.passes.graphs import dtype_name, flat_outputs
from ditc.runtime.decoder import DECODER, FRAMES_AXIS, DecoderInfo
from ditc.runtime.entries import InputInfo, OutputInfo
from ditc.runtime.errors import CaptureError, LoweringError

from .building import Job, build
from .cache import EngineCache, key_of
from .forms import ONNX, Form
from .lowered import Lowered

__all__ = ["capture_decoder", "decoder_info", "lower_decoder"]

PLACES = "img_ids"
"""The input that holds the places of packed latents' tokens, `[tokens, 3]`: row and column last."""
Grid = tuple[int, int]


class _Decoder(nn.Module):
    """Latents of one sample to pixels, float32 from 0 to 255."""

    def __init__(self, vae: nn.Module, grid: Grid | None) -> None:
        super().__init__()
        self.vae, self.grid = vae, grid
        self.decode: Callable[..., tuple[torch.Tensor, ...]] = vae.decode  # type: ignore[assignment]
        config: Mapping[str, object] = getattr(vae, "config", {})
        self.scale, self.shift = _number(config, "scaling_factor"), _number(config, "shift_factor")

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return `[1, channels, height, width]`."""
        if self.grid is not None:
            latents = _unpacked(latents, *self.grid)
        latents = latents / (1.0 if self.scale is None else self.scale)
        if self.shift is not None:
            latents = latents + self.shift
        image = self.decode(latents, return_dict=False)[0]
        return (image / 2 + 0.5).clamp(0, 1) * 255


def capture_decoder(vae: nn.Module, program: Program) -> Program:
    """Capture the decoder for one picture of a program's latents.

    Args:
        vae: an autoencoder of pictures, such as diffusers' `AutoencoderKL`, in float32.
        program: the denoiser, whose latents it decodes.

    Raises:
        LoweringError: if it decodes no such latents into pictures, or they are packed and the
            place of their tokens isn't known.
    """
    name = type(vae).__name__
    if not isinstance(vae, nn.Module) or not callable(getattr(vae, "decode", None)):
        raise LoweringError(f"decoder is a {name}, expected an autoencoder with decode()")
    config: Mapping[str, object] = getattr(vae, "config", {})
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise LoweringError(
            f"{name} normalises latents channel by channel, which a bundle's decoder doesn't: "
            "compile without a decoder and decode what it makes"
        )
    _check_dtype(name, vae)
    latents, grid = _one(program)
    module = _Decoder(vae, grid)
    modes = {part: part.training for part in module.modules()}
    try:
        decoder = capture(module, {"latents": latents}, latents="latents")
    except CaptureError as error:
        raise LoweringError(
            f"{name} can't decode latents {list(latents.shape)} of the denoiser's "
            f"{list(program.latents.shape)}, or its decoder can't be captured: {error}"
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    shape = _pixels(decoder)
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise LoweringError(f"{name} decodes latents to {list(shape)}, expected a picture")
    return decoder


def lower_decoder(
    decoder: Program,
    cache: EngineCache,
    done: Callable[[str, bool], object],
    form: Form = ONNX,
) -> Lowered:
    """Lower a captured decoder, or find it in the cache.

    Args:
        decoder: what `capture_decoder` returned.
        cache: where graphs are kept.
        done: told its name, and whether it was built.
        form: to lower it to.

    Raises:
        LoweringError: if an operator has no counterpart there.
    """
    bucket = schedule(decoder, Plan.uniform(decoder, 1, "full")).buckets[0]
    key = key_of(form.name, DECODER, program_digest(decoder))
    job = Job(DECODER, key, partial(form.lower, bucket))
    return build([job], cache, 1, done)[DECODER]


def decoder_info(
    decoder: Program, lowered: Lowered, program: Program, graph: str, *, baked: bool
) -> DecoderInfo:
    """Return what a manifest tells of a decoder.

    Args:
        decoder: captured.
        lowered: the same.
        program: the denoiser whose latents it decodes.
        graph: its file in the bundle.
        baked: whether that holds its weights.
    """
    return DecoderInfo(
        graph=graph,
        input=InputInfo(decoder.latents.name, decoder.latents.shape, "float32", "latents"),
        output=OutputInfo(decoder.outputs[0], _pixels(decoder), "float32"),
        frames_axis=FRAMES_AXIS if len(program.latents.shape) == 5 else None,
        multiply_adds=lowered.multiply_adds,
        weights=() if baked else lowered.names,
    )


def _one(program: Program) -> tuple[torch.Tensor, Grid | None]:
    """Return latents of one picture, and the grid of their tokens where they are packed."""
    _, *shape = program.latents.shape
    if len(shape) == 4:
        shape.pop(FRAMES_AXIS - 1)
    if len(shape) not in (2, 3):
        raise LoweringError(
            f"latents {list(program.latents.shape)} are neither pictures, videos nor packed "
            "tokens, so that nothing decodes them: compile without a decoder"
        )
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, *shape, generator=generator)
    return latents, (_grid(program, shape[0]) if len(shape) == 2 else None)


def _grid(program: Program, tokens: int) -> Grid:
    places = program.example.get(PLACES)
    if places is not None:
        rows, columns = (int(size) + 1 for size in places.reshape(-1, 3)[:, 1:].amax(0))
        if rows * columns == tokens:
            return rows, columns
    raise LoweringError(
        f"latents {list(program.latents.shape)} are packed, and no input {PLACES} tells the places "
        "of their tokens: compile without a decoder and decode what it makes"
    )


def _unpacked(latents: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return `[batch, channels, 2 rows, 2 columns]` of tokens that hold 2 x 2 latents each."""
    parts = latents.reshape(latents.shape[0], rows, columns, -1, 2, 2)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(latents.shape[0], -1, 2 * rows, 2 * columns)


def _pixels(decoder: Program) -> tuple[int, ...]:
    return tuple(flat_outputs(decoder.graph_module.graph)[0].meta["val"].shape)


def _check_dtype(name: str, vae: nn.Module) -> None:
    for path, weight in vae.named_parameters():
        if weight.dtype != torch.float32:
            raise LoweringError(
                f"{name}: {path} is {dtype_name(weight.dtype)}, expected float32: load the "
                "autoencoder in float32"
            )


def _number(config: Mapping[str, object], name: str) -> float | None:
    value = config.get(name)
    return float(value) if isinstance(value, int | float) else None
