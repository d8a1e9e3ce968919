"""Classifier-free guidance on two halves, of a batch or of two calls (arXiv 2207.12598)."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .calls import in_batch
from .engine import Array
from .errors import EngineError
from .inputs import as_array, check_array, check_names
from .manifest import InputInfo, Manifest

__all__ = [
    "Latents",
    "check_equal_halves",
    "conditions",
    "guide",
    "join",
    "latents_shape",
    "learned_variance",
    "split",
]

Latents = npt.NDArray[np.float32]


def latents_shape(manifest: Manifest, latents: InputInfo) -> tuple[int, ...]:
    """Return the shape of the latents a sampler sees: half the model's batch under guidance."""
    batch, *rest = latents.shape
    return (batch // 2 if in_batch(manifest.cfg) else batch, *rest)


def join(cfg: str | None, conditional: Array, unconditional: Array) -> Array:
    """Return the full batch from its halves, in the layout's order."""
    halves = [conditional, unconditional]
    return np.concatenate(halves if cfg == "cond-first" else halves[::-1])


def split(cfg: str | None, batch: Array) -> tuple[Array, Array]:
    """Return the conditional and the unconditional half of a full batch."""
    first, second = np.split(batch, 2)
    return (first, second) if cfg == "cond-first" else (second, first)


def check_equal_halves(manifest: Manifest, arrays: Mapping[str, Array]) -> None:
    """Refuse latents or timesteps that differ between the halves.

    Raises:
        EngineError: naming the input.
    """
    for info in manifest.inputs:
        if info.role in ("latents", "timestep") and info.shape:
            first, second = np.split(arrays[info.name], 2)
            if not np.array_equal(first, second):
                raise EngineError(
                    f"input {info.name!r} differs between the halves, which the bundle takes as "
                    "equal: give both the same, or compile without folding halves"
                )


def guide(cfg: str | None, output: Array, scale: float, shape: tuple[int, ...]) -> Latents:
    """Return what the sampler takes from a model output, float32 of `shape`.

    A model that also predicts a variance returns twice the channels, of which the first half
    counts here. Under guidance it is `u + scale * (c - u)` from the halves c and u.

    Raises:
        EngineError: if the output has another shape.
    """
    if _has_variance(output, shape):
        output = output[:, : shape[1]]
    full = (2 * shape[0] if cfg else shape[0], *shape[1:])
    if output.shape != full:
        raise EngineError(
            f"the model's first output has shape {output.shape}, expected {full} like the latents; "
            "use step() and a loop of your own"
        )
    values = np.asarray(output, np.float32)
    if cfg is None:
        return values
    conditional, unconditional = (np.asarray(half, np.float32) for half in split(cfg, values))
    guided: Latents = unconditional + np.float32(scale) * (conditional - unconditional)
    return guided


def learned_variance(cfg: str | None, output: Array, shape: tuple[int, ...]) -> Latents | None:
    """Return what a model predicts of the noise's variance, float32 of `shape`, if it does.

    It is the second half of the channels, and isn't guided: the conditional half's is taken, as
    the pipelines do that sample with it (GLIDE, DiT's own code, DeepFloyd IF, Open-Sora).
    """
    if not _has_variance(output, shape):
        return None
    variance = output[:, shape[1] :]
    return np.asarray(variance if cfg is None else split(cfg, variance)[0], np.float32)


def _has_variance(output: Array, shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and output.ndim > 1 and output.shape[1] == 2 * shape[1]


def conditions(
    manifest: Manifest,
    recorded: Mapping[str, Mapping[str, Array]],
    given: Mapping[str, npt.ArrayLike],
    negative: Mapping[str, npt.ArrayLike],
) -> Mapping[str, Mapping[str, Array]]:
    """Return every conditioning input of each call, from what was given and what was recorded.

    Args:
        manifest: says the inputs, and which half is which.
        recorded: the conditioning of the calls that were compiled, by call, in full.
        given: by name, in full; where there is guidance the conditional half, or call's. The
            unconditional call's too where both calls had the same.
        negative: by name, the unconditional half, or call's.

    Raises:
        EngineError: if a name or shape isn't expected, or a half is given twice.
    """
    names = [info.name for info in manifest.inputs if info.role == "condition"]
    check_names("conditioning", given, names)
    check_names("negative conditioning", negative, names)
    if manifest.calls:
        return _of_calls(manifest, recorded, given, negative)
    return {"": _of_halves(manifest, recorded[""], given, negative)}


def _of_halves(
    manifest: Manifest,
    recorded: Mapping[str, Array],
    given: Mapping[str, npt.ArrayLike],
    negative: Mapping[str, npt.ArrayLike],
) -> dict[str, Array]:
    if negative and manifest.cfg is None:
        raise EngineError("negative conditioning was given, but the bundle has no guidance")
    return {
        info.name: _fill(manifest, info, recorded[info.name], given, negative)
        for info in manifest.inputs
        if info.role == "condition"
    }


def _of_calls(
    manifest: Manifest,
    recorded: Mapping[str, Mapping[str, Array]],
    given: Mapping[str, npt.ArrayLike],
    negative: Mapping[str, npt.ArrayLike],
) -> dict[str, dict[str, Array]]:
    infos = {info.name: info for info in manifest.inputs if info.role == "condition"}
    found: dict[str, dict[str, Array]] = {"cond": {}, "uncond": {}}
    for name, info in infos.items():
        cond, uncond = recorded["cond"][name], recorded["uncond"][name]
        same = np.array_equal(cond, uncond)
        if given.get(name) is not None:
            cond = check_array(info, given[name])
            uncond = cond if same else uncond
        if name in negative:
            uncond = check_array(info, negative[name])
        found["cond"][name], found["uncond"][name] = cond, uncond
    return found


def _fill(
    manifest: Manifest,
    info: InputInfo,
    recorded: Array,
    given: Mapping[str, npt.ArrayLike],
    negative: Mapping[str, npt.ArrayLike],
) -> Array:
    name = info.name
    half = _half_shape(manifest, info)
    if name in negative and half is None:
        raise EngineError(f"negative {name!r} was given, but {name!r} has no halves; give it whole")
    value = None if given.get(name) is None else as_array(name, given[name])
    if value is not None and value.shape == info.shape:
        if name in negative:
            raise EngineError(f"{name!r} was given in full, so negative {name!r} has no place")
        return check_array(info, value)
    if half is None:
        return recorded if value is None else check_array(info, value)
    conditional, unconditional = split(manifest.cfg, recorded)
    if value is not None:
        _check_either(name, value.shape, info.shape, half)
        conditional = check_array(info, value, half)
    if name in negative:
        unconditional = check_array(info, negative[name], half)
    return np.ascontiguousarray(join(manifest.cfg, conditional, unconditional))


def _check_either(
    name: str, found: tuple[int, ...], full: tuple[int, ...], half: tuple[int, ...]
) -> None:
    if found != half:
        raise EngineError(
            f"input {name!r} has shape {found}, expected {half} for the conditional half "
            f"or {full} for both"
        )


def _half_shape(manifest: Manifest, info: InputInfo) -> tuple[int, ...] | None:
    latents = manifest.input_of("latents")
    if manifest.cfg is None or latents is None or info.shape[:1] != latents.shape[:1]:
        return None
    return (info.shape[0] // 2, *info.shape[1:])
