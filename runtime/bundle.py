"""Open a bundle and run it: numpy in, numpy out."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os.path import realpath
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from .agreement import check_plan
from .backends import backend_of
from .batches import count, limited, repeated, resized, samples_of
from .binding import bind, resize
from .calls import calls_of
from .decoder import DECODER
from .decoding import Pixels, decode, decoder_manifest
from .drawing import (
    DEFAULT_GUIDANCE_SCALE,
    as_float32,
    generator,
    initial_latents,
    model_inputs,
    noise_of,
    sampler_of,
)
from .drawing import guidance_scale as scale_of
from .engine import Array, Backend, Engine, OnDevice
from .errors import BundleError, EngineError
from .feed import Feed
from .files import check_files
from .guidance import (
    Latents,
    check_equal_halves,
    conditions,
    guide,
    latents_shape,
    learned_variance,
)
from .held import check_held_timestep
from .inputs import as_array, check_array, check_finite, check_names, check_rows
from .manifest import WEIGHTS_FILE, Manifest
from .recorded import read_recorded
from .sampler import SamplerState
from .slots import SlotLedger
from .turns import alone
from .variants import read_manifest
from .weights import map_tensors

__all__ = ["DEFAULT_GUIDANCE_SCALE", "Bundle", "Callback"]

Callback = Callable[[int, int, Latents], None]


class Bundle:
    """A compiled denoiser and its sampler, ready to run; one thread at a time, others are refused.

    Attributes:
        manifest: what the bundle says of itself.
        feeds: run what the steps share before them, by call; `feed` is that of the first.
    """

    def __init__(
        self,
        manifest: Manifest,
        engines: Mapping[str, Engine],
        recorded: Mapping[str, Mapping[str, Array]],
        load: Callable[[Manifest], Mapping[str, Engine]],
    ) -> None:
        self.manifest = manifest
        self._recorded = recorded
        self._load = load
        self._decoder: Engine | None = None
        self._turn = Lock()
        self._ledger = SlotLedger(manifest.runs, manifest.storages)
        self._numbers = {(run.step, run.call): n for n, run in enumerate(manifest.runs)}
        self._sized = manifest
        self._engines = engines
        self._bound = bind(manifest, engines)
        self._start_feeds()

    def __repr__(self) -> str:
        """Return what it computes, in how many graphs, and of which inputs."""
        return f"Bundle({self.manifest.title})"

    @classmethod
    def open(
        cls,
        path: str | Path,
        providers: Sequence[str] | None = None,
        *,
        threads: int | None = None,
        prepack: bool | None = None,
        cuda_graphs: bool = False,
        backend: Backend | None = None,
        batch: int | None = None,
        variant: str | None = None,
    ) -> "Bundle":
        """Check a bundle's files and load its buckets.

        Args:
            path: the bundle's folder.
            providers: ONNX Runtime execution providers, most wanted first; None for the CPU.
            threads: threads within an operator; None for all cores.
            prepack: True for faster operators at few rows and a copy of the weights for every
                bucket; None or False for one copy in all.
            cuda_graphs: whether the work of a TensorRT engine is launched as one graph.
            backend: what runs the graphs, in place of what the bundle was compiled for.
            batch: samples at most that are run at once, for a bundle that serves a range: slots
                take memory for so many. All of the range if None.
            variant: which one, of a folder that holds several.

        Raises:
            BundleError: if a file is missing, altered, of another version or malformed.
            EngineError: if the inference engine or a provider isn't there or gave way to another,
                or the GPU or its driver are others than the engines were built for.
        """
        root = Path(realpath(path))  # Path.resolve fails in its own way where links go round
        if not root.is_dir():
            raise BundleError(f"{root}: is no folder, expected a bundle; compile one there")
        whole = read_manifest(root, variant)
        manifest = whole if batch is None else limited(whole, count(batch))
        if backend is None:
            backend = backend_of(manifest, providers, threads, prepack, cuda_graphs)
        check_files(root, manifest.files)
        check_plan(root, manifest)
        weights = map_tensors(root / WEIGHTS_FILE) if WEIGHTS_FILE in manifest.files else {}
        load = partial(backend.load, root, weights=weights)
        return cls(manifest, load(manifest), read_recorded(root, whole), load)

    @property
    def device_bytes(self) -> int | None:
        """Bytes in use of the memory of the GPU it runs on; None where that isn't known."""
        _, engine = self._bound[0]
        return engine.used_bytes if isinstance(engine, OnDevice) else None

    @property
    def steps(self) -> int:
        """Return the number of steps, T."""
        return self.manifest.steps

    def _start_feeds(self) -> None:
        """Forget what was run before the steps."""
        calls = calls_of(self.manifest.cfg)
        self.feeds = {call: Feed(self._sized, self._engines) for call in calls}
        self.feed = self.feeds[calls[0]]

    def reset(self) -> None:
        """Forget what the slots hold; step 0 does so too."""
        self._ledger.reset()

    @alone
    def step(self, k: int, call: str = "", /, **arrays: npt.ArrayLike) -> Array | dict[str, Array]:
        """Run the denoiser at step `k`, from 0, with every program input in full captured shape.

        A bundle that serves a range of batch sizes takes any of them; steps that follow each
        other take the same.

        Args:
            k: the step.
            call: "cond" or "uncond" where a step is two calls, in the order of `manifest.calls`.
            **arrays: the inputs, by name.

        Returns:
            The output, or outputs by name where there are several; the caller's own.

        Raises:
            EngineError: if an input is missing, unknown, of another shape or kind, or not finite;
                there is no such step or call; a slot it reads lacks the write of an earlier step;
                its graph holds another timestep; or the bundle is running already.
        """
        self._check_step(k, call)
        outputs = self._run(k, call, self._check_inputs(k, arrays))
        if len(outputs) == 1:
            return outputs[self.manifest.outputs[0].name]
        return outputs

    @alone
    def generate(
        self,
        /,
        seed: int = 0,
        guidance_scale: float | None = None,
        *,
        negative: Mapping[str, npt.ArrayLike] | None = None,
        latents: npt.ArrayLike | None = None,
        noise: npt.ArrayLike | None = None,
        batch: int | None = None,
        callback: Callback | None = None,
        **conditioning: npt.ArrayLike,
    ) -> Latents:
        """Sample latents from noise, running every step.

        Args:
            seed: of the initial latents and of the steps' noise.
            guidance_scale: s in `u + s * (c - u)`; None for 4 where the bundle has guidance.
            negative: unconditional halves by name.
            latents: x_0 instead of noise, already of the sampler's initial scale.
            noise: [T, latents], the steps' noise instead of the seed's.
            batch: samples, for a bundle that serves a range; as many as captured if None. What is
                recorded of the conditioning is repeated in turn for them.
            callback: called after each step with its number, T, and a copy of the latents.
            **conditioning: inputs by name, in full captured shape, or under guidance the
                conditional half alone; what isn't given is as it was recorded.

        Returns:
            The final latents, float32, the model's latents' shape with half the batch under
            guidance.

        Raises:
            BundleError: if the bundle has no sampler.
            EngineError: if an argument doesn't fit, the model returns numbers that aren't finite,
                where the message names the step, or the bundle is running already.
        """
        table, model_latents = sampler_of(self.manifest)
        scale = scale_of(self.manifest, guidance_scale)
        sized = self._resize(self.manifest.samples if batch is None else count(batch))
        recorded = {call: repeated(sized, held) for call, held in self._recorded.items()}
        full = conditions(sized, recorded, conditioning, negative or {})
        shape = latents_shape(sized, sized.input_of("latents") or model_latents)
        draw = generator(seed)
        x = initial_latents(draw, table, shape, latents)
        given = None if noise is None else as_float32("noise", noise, (table.steps, *shape))
        state = SamplerState(table)
        cfg = "cond-first" if self.manifest.calls else self.manifest.output_cfg
        self.reset()
        for k in range(table.steps):
            with np.errstate(over="ignore", invalid="ignore"):  # checked below, with the step
                scaled = state.model_input(k, x)
                predicted = self._predicted(k, scaled, table.timesteps[k], scale, full)
                check_finite(f"step {k}: the model's output", predicted)
                guided = guide(cfg, predicted, scale, shape)
                variance = learned_variance(cfg, predicted, shape)
                x = state.advance(k, x, guided, noise_of(k, table, draw, given, shape), variance)
            check_finite(f"step {k}: the latents", x)
            if callback is not None:
                callback(k, table.steps, x.copy())
        return x

    def decode(
        self, latents: npt.ArrayLike, *, done: Callable[[int, int], object] | None = None
    ) -> Pixels:
        """Return the pixels of latents that `generate` made.

        Args:
            latents: `[samples, …]`, of videos with all their frames.
            done: called after each picture with its number and their count.

        Returns:
            uint8 `[samples, height, width, 3]`, of videos `[samples, frames, height, width, 3]`.

        Raises:
            BundleError: if the bundle has no decoder.
            EngineError: if the latents don't fit it.
        """
        info = self.manifest.decoder
        if info is None:
            raise BundleError("the bundle has no decoder: compile with decoder=, the autoencoder")
        if self._decoder is None:
            self._decoder = self._load(decoder_manifest(self.manifest, info))[DECODER]
        return decode(info, self._decoder, latents, done)

    def _predicted(
        self,
        k: int,
        latents: Latents,
        timestep: float,
        scale: float,
        conditions: Mapping[str, Mapping[str, Array]],
    ) -> Array:
        """Return the model's output at a step; of two calls as one batch, conditional first."""
        name, found = self.manifest.outputs[0].name, {}
        for call in calls_of(self.manifest.cfg):
            inputs = model_inputs(self._sized, latents, timestep, scale, conditions[call])
            found[call] = self._run(k, call, inputs, same_prompt=k > 0)[name]
        return found[""] if "" in found else np.concatenate([found["cond"], found["uncond"]])

    def _resize(self, samples: int) -> Manifest:
        """Return the manifest with the shapes of so many samples; other slots hold nothing then."""
        if samples != self._sized.samples:
            self._sized = resized(self.manifest, samples)
            self._ledger.reset()
            parts = (self._engines[graph.name] for graph in self.manifest.graphs)
            resize((*parts, *(engine for _, engine in self._bound)), self._sized)
            self._start_feeds()
        return self._sized

    def _run(
        self, k: int, call: str, arrays: Mapping[str, Array], *, same_prompt: bool = False
    ) -> dict[str, Array]:
        check_rows(self.manifest.rows, arrays)
        number = self._numbers[k, call]
        self._ledger.begin(number)
        inputs, engine = self._bound[number]
        given = self.feeds[call](k, arrays, same_prompt=same_prompt)
        outputs = engine.run({name: given[name] for name in inputs})
        self._ledger.commit(number)
        return outputs

    def _check_step(self, k: int, call: str) -> None:
        if not isinstance(k, int | np.integer) or k not in range(self.steps):
            raise EngineError(f"there is no step {k}, expected one of 0 to {self.steps - 1}")
        if (k, call) not in self._numbers:
            listed = " and then ".join(repr(name) for name in calls_of(self.manifest.cfg))
            raise EngineError(f"step {k} has no call {call!r}, expected {listed}")

    def _check_inputs(self, k: int, arrays: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
        names = [info.name for info in self.manifest.inputs]
        check_names("input", arrays, names)
        for name in names:
            if name not in arrays:
                raise EngineError(f"input {name!r} is missing, expected {', '.join(names)}")
        shapes = {name: as_array(name, array).shape for name, array in arrays.items()}
        sized = self._resize(samples_of(self.manifest, shapes))
        checked = {info.name: check_array(info, arrays[info.name]) for info in sized.inputs}
        if sized.equal_halves:
            check_equal_halves(sized, checked)
        check_held_timestep(sized, k, checked)
        return checked
