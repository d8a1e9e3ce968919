"""Open a bundle and run it: numpy in, numpy out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .engine import Array, Backend, Engine
from .errors import BundleError, EngineError
from .feed import Feed
from .files import check_files, read_text
from .guidance import Latents, condition, guide, latents_shape, learned_variance
from .inputs import check_array, check_finite, check_names
from .manifest import CONDITIONING_FILE, MANIFEST_FILE, WEIGHTS_FILE, InputInfo, Manifest
from .ort import CPU, OrtBackend
from .sampler import SamplerState, SamplerTable
from .slots import SlotLedger
from .weights import map_tensors

__all__ = ["DEFAULT_GUIDANCE_SCALE", "Bundle", "Callback"]

DEFAULT_GUIDANCE_SCALE = 4.0
SCALARS = (int, float, np.number)
Callback = Callable[[int, int, Latents], None]


class Bundle:
    """A compiled denoiser and its sampler, ready to run. Not for several threads at once.

    Attributes:
        manifest: what the bundle says of itself.
        feed: runs what the steps share before them.
    """

    def __init__(
        self, manifest: Manifest, engines: Mapping[str, Engine], recorded: Mapping[str, Array]
    ) -> None:
        self.manifest = manifest
        self._engines = engines
        self._recorded = recorded
        self.feed = Feed(manifest, engines)
        self._ledger = SlotLedger(manifest.steps, manifest.buckets, manifest.storages)

    @classmethod
    def open(
        cls,
        path: str | Path,
        providers: Sequence[str] | None = None,
        *,
        threads: int | None = None,
        prepack: bool | None = None,
        backend: Backend | None = None,
    ) -> "Bundle":
        """Check a bundle's files and load its buckets.

        Args:
            path: the bundle's folder.
            providers: ONNX Runtime execution providers, most wanted first; None for the CPU.
            threads: threads within an operator; None for all cores.
            prepack: True for faster operators at few rows and a copy of the weights for every
                bucket; None or False for one copy in all.
            backend: what runs the graphs, in place of what the bundle was compiled for.

        Raises:
            BundleError: if a file is missing, altered, of another version or malformed.
            EngineError: if the inference engine or a provider isn't there, or gave way to another.
        """
        root = Path(path).resolve()
        if not root.is_dir():
            raise BundleError(f"{root}: is no folder, expected a bundle; compile one there")
        manifest = Manifest.from_json(read_text(root, MANIFEST_FILE))
        if backend is None:
            _check_target(manifest)
            backend = OrtBackend(providers or (CPU,), threads, bool(prepack))
        check_files(root, manifest.files)
        weights = map_tensors(root / WEIGHTS_FILE) if WEIGHTS_FILE in manifest.files else {}
        return cls(manifest, backend.load(root, manifest, weights), _read_recorded(root, manifest))

    @property
    def steps(self) -> int:
        """Return the number of steps, T."""
        return self.manifest.steps

    def reset(self) -> None:
        """Forget what the slots hold; step 0 does so too."""
        self._ledger.reset()

    def step(self, k: int, /, **arrays: npt.ArrayLike) -> Array | dict[str, Array]:
        """Run the denoiser at step `k`, from 0, with every program input in full captured shape.

        Returns:
            The output, or outputs by name where there are several; the caller's own.

        Raises:
            EngineError: if an input is missing, unknown, of another shape or kind, or not finite;
                there is no step `k`; or a slot it reads lacks the write of an earlier step.
        """
        outputs = self._run(k, self._check_inputs(k, arrays))
        if len(outputs) == 1:
            return outputs[self.manifest.outputs[0].name]
        return outputs

    def generate(
        self,
        seed: int = 0,
        guidance_scale: float | None = None,
        *,
        negative: Mapping[str, npt.ArrayLike] | None = None,
        latents: npt.ArrayLike | None = None,
        noise: npt.ArrayLike | None = None,
        callback: Callback | None = None,
        **conditioning: npt.ArrayLike,
    ) -> Latents:
        """Sample latents from noise, running every step.

        Conditioning is given in full captured shape, or under guidance as its conditional half,
        with the unconditional half in `negative`. What isn't given is as it was recorded.

        Args:
            seed: of the initial latents and of the steps' noise.
            guidance_scale: s in `u + s * (c - u)`; None for 4 where the bundle has guidance.
            negative: unconditional halves by name.
            latents: x_0 instead of noise, already of the sampler's initial scale.
            noise: [T, latents], the steps' noise instead of the seed's.
            callback: called after each step with its number, T, and a copy of the latents.

        Returns:
            The final latents, float32, the model's latents' shape with half the batch under
            guidance.

        Raises:
            BundleError: if the bundle has no sampler.
            EngineError: if an argument doesn't fit, or the model returns numbers that aren't
                finite; the message names the step.
        """
        table, model_latents = self._sampler()
        scale = self._guidance_scale(guidance_scale)
        full = condition(self.manifest, self._recorded, conditioning, negative or {})
        shape = latents_shape(self.manifest, model_latents)
        draw = _generator(seed)
        x = _initial_latents(draw, table, shape, latents)
        given = None if noise is None else _as_float32("noise", noise, (table.steps, *shape))
        state = SamplerState(table)
        self.reset()
        for k in range(table.steps):
            with np.errstate(over="ignore", invalid="ignore"):  # checked below, with the step
                scaled = state.model_input(k, x)
                inputs = self._model_inputs(scaled, table.timesteps[k], full)
                outputs = self._run(k, inputs, same_prompt=k > 0)
                predicted = outputs[self.manifest.outputs[0].name]
                check_finite(f"step {k}: the model's output", predicted)
                guided = guide(self.manifest.cfg, predicted, scale, shape)
                variance = learned_variance(self.manifest.cfg, predicted, shape)
                x = state.advance(k, x, guided, _noise_of(k, table, draw, given, shape), variance)
            check_finite(f"step {k}: the latents", x)
            if callback is not None:
                callback(k, table.steps, x.copy())
        return x

    def _run(
        self, k: int, arrays: Mapping[str, Array], *, same_prompt: bool = False
    ) -> dict[str, Array]:
        self._ledger.begin(k)
        bucket = self.manifest.bucket_of(k)
        given = self.feed(k, arrays, same_prompt=same_prompt)
        outputs = self._engines[bucket.name].run({name: given[name] for name in bucket.inputs})
        self._ledger.commit(k)
        return outputs

    def _check_inputs(self, k: int, arrays: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
        if not isinstance(k, int | np.integer) or k not in range(self.steps):
            raise EngineError(f"there is no step {k}, expected one of 0 to {self.steps - 1}")
        names = [info.name for info in self.manifest.inputs]
        check_names("input", arrays, names)
        for name in names:
            if name not in arrays:
                raise EngineError(f"input {name!r} is missing, expected {', '.join(names)}")
        return {info.name: check_array(info, arrays[info.name]) for info in self.manifest.inputs}

    def _sampler(self) -> tuple[SamplerTable, InputInfo]:
        latents = self.manifest.input_of("latents")
        if self.manifest.sampler is None or latents is None:
            raise BundleError(
                "the bundle has no sampler or no latents input; use step() and a loop of your own, "
                "or compile with sampler="
            )
        return self.manifest.sampler, latents

    def _guidance_scale(self, scale: float | None) -> float:
        if self.manifest.cfg is None:
            if scale not in (None, 1.0):
                raise EngineError(
                    f"guidance_scale is {scale}, but the bundle has no guidance, expected None or 1"
                )
            return 1.0
        if scale is None:
            return DEFAULT_GUIDANCE_SCALE
        if np.ndim(scale) or not isinstance(scale, SCALARS) or not np.isfinite(scale):
            raise EngineError(f"guidance_scale is {scale}, expected a finite number")
        return float(scale)

    def _model_inputs(
        self, latents: Latents, timestep: float, conditioning: Mapping[str, Array]
    ) -> dict[str, Array]:
        inputs = dict(conditioning)
        for info in self.manifest.inputs:
            if info.role == "latents":
                batch = np.concatenate([latents, latents]) if self.manifest.cfg else latents
                inputs[info.name] = np.ascontiguousarray(batch, info.dtype)
            if info.role == "timestep":
                inputs[info.name] = np.full(info.shape, timestep, info.dtype)
        return inputs


def _generator(seed: int) -> np.random.Generator:
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise EngineError(f"seed is {seed}, expected an integer of at least 0")
    return np.random.default_rng(int(seed))


def _check_target(manifest: Manifest) -> None:
    if manifest.target != "onnx":
        raise BundleError(
            f"the bundle's target is {manifest.target!r}, and this ditc runs 'onnx'; "
            "compile with target='onnx' or give a backend"
        )


def _read_recorded(root: Path, manifest: Manifest) -> dict[str, Array]:
    conditions = [info for info in manifest.inputs if info.role == "condition"]
    if not conditions:
        return {}
    tensors = map_tensors(root / CONDITIONING_FILE)
    for info in conditions:
        found = tensors.get(info.name)
        if found is None or found.shape != info.shape or found.dtype != info.dtype:
            kind = "nothing" if found is None else f"{found.dtype} {found.shape}"
            raise BundleError(
                f"{root / CONDITIONING_FILE}: holds {kind} for {info.name!r}, expected "
                f"{info.dtype} {info.shape}; compile the bundle again"
            )
    return {info.name: np.array(tensors[info.name]) for info in conditions}


def _initial_latents(
    draw: np.random.Generator,
    table: SamplerTable,
    shape: tuple[int, ...],
    given: npt.ArrayLike | None,
) -> Latents:
    if given is not None:
        return _as_float32("latents", given, shape)
    return draw.standard_normal(shape, np.float32) * np.float32(table.init_noise_scale)


def _noise_of(
    k: int,
    table: SamplerTable,
    draw: np.random.Generator,
    given: Latents | None,
    shape: tuple[int, ...],
) -> Latents | None:
    if not table.noise[k]:
        return None
    noise: Latents = draw.standard_normal(shape, np.float32) if given is None else given[k]
    return noise


def _as_float32(name: str, value: npt.ArrayLike, shape: tuple[int, ...]) -> Latents:
    checked = check_array(InputInfo(name, shape, "float32", "latents"), value)
    return np.array(checked, np.float32)
