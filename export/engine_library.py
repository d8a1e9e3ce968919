"""A TensorRT library in the process that builds an engine: from a graph to its network and plan.

Loaded by `engine_worker.py`; it imports the standard library and the TensorRT module it is told.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl


class RefusedError(Exception):
    """The library refused; the message is its reason."""


class EngineLibrary:
    """A TensorRT module, its log, and what it builds for.

    Args:
        job: what to build: `library`, `capabilities`, `graph` and how.
        sibling: loads a module that lies beside this one.

    Raises:
        RefusedError: if it builds nothing here.
    """

    def __init__(self, job: Mapping[str, Any], sibling: Callable[[str], Any]) -> None:
        self.job, self._sibling = job, sibling
        self.trt = importlib.import_module(job["library"])
        self.errors: list[str] = []
        self.logger = self._logger()
        try:
            self.builder = self.trt.Builder(self.logger)
        except Exception as error:  # as where a library can't build without a GPU
            reason = self.errors[0] if self.errors else str(error)
            raise RefusedError(f"no builder: {reason}") from error

    def _logger(self) -> Any:
        trt, errors = self.trt, self.errors

        class Log(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    errors.append(" ".join(message.split()))

        return Log()

    @property
    def version(self) -> str:
        """Of the library, as it says itself."""
        return str(self.trt.__version__)

    def network(self) -> Any:
        """Return an empty network, strongly typed."""
        flag = self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return self.builder.create_network(1 << int(flag))

    def parsed(self) -> tuple[Any, Any]:
        """Return the graph's network, and what holds the weights until it is built."""
        if self.job["graph"].endswith(".pt2"):
            return self._from_torch()
        if self.job["window_kernel"]:
            self._register_window_kernel()
        network = self.network()
        parser = self.trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(self.job["graph"]):
            error = parser.get_error(0)
            raise RefusedError(f"{error.node_operator()} {error.node_name()}: {error.desc()}")
        return network, parser

    def _register_window_kernel(self) -> None:
        """Register the plugin of graphs that call it; the one thing here that needs ditc."""
        plugin = importlib.import_module("ditc.export.window_plugin")
        try:
            plugin.register_window_plugin(plugin.find_plugins(self.job["library"]))
        except plugin.LoweringError as error:
            raise RefusedError(str(error)) from error

    def _from_torch(self) -> tuple[Any, Any]:
        """Return the network that Torch-TensorRT makes of a program of torch.export."""
        torch_network = self._sibling("torch_network")
        try:
            made = torch_network.make_network(self.job)
        except torch_network.NotConvertibleError as error:
            raise RefusedError(str(error)) from error
        self.builder = made.builder  # a network is built by the builder that made it
        attentions, sites = list(self.attentions(made.network)), made.attentions
        for number, attention in enumerate(attentions):
            site = sites[number] if len(sites) == len(attentions) else None
            attention.name = f"{site or 'attention'}#{number}"
        return made.network, made

    def write_plan(self, network: Any) -> int:
        """Build a network, write its plan if the job names a file, and return its bytes."""
        self.errors.clear()
        config = self._config()
        if self.job["shapes"]:
            config.add_optimization_profile(self._profile())
        plan = self.builder.build_serialized_network(network, config)
        self._keep_timings(config)
        if plan is None:
            raise RefusedError(self.errors[0] if self.errors else "the builder gave no reason")
        with Path(self.job["plan"]).open("wb") as file:
            file.write(plan)
        return int(plan.nbytes)

    def _config(self) -> Any:
        trt, config = self.trt, self.builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32, as on the CPU
        wanted = self.job["capabilities"]
        if wanted:
            config.num_compute_capabilities = len(wanted)
            for index, name in enumerate(wanted):
                config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), index)
        if self.job["refit"]:
            config.set_flag(trt.BuilderFlag.REFIT)
        if self.job["timing_cache"]:
            known = _read(Path(self.job["timing_cache"]))
            cache = config.create_timing_cache(known)
            if cache is None or not config.set_timing_cache(cache, False):  # damaged, or another's
                config.set_timing_cache(config.create_timing_cache(b""), False)
        return config

    def _profile(self) -> Any:
        """Return the shapes that inputs of several sizes may have."""
        profile = self.builder.create_optimization_profile()
        for name, (least, usual, most) in self.job["shapes"].items():
            profile.set_shape(name, least, usual, most)
        return profile

    def _keep_timings(self, config: Any) -> None:
        """Add this build's timings to the file, whole or not at all; others may build beside it."""
        if not self.job["timing_cache"]:
            return
        path = Path(self.job["timing_cache"])
        with path.with_name(f"{path.name}.lock").open("a") as lock:
            if sys.platform != "win32":
                fcntl.flock(lock, fcntl.LOCK_EX)
            cache = config.get_timing_cache()
            others = config.create_timing_cache(_read(path))
            if others is not None:
                cache.combine(others, False)
            part = path.with_name(f".{path.name}.{os.getpid()}.part")
            part.write_bytes(bytes(cache.serialize()))
            part.replace(path)

    def attentions(self, network: Any) -> Iterator[Any]:
        """Yield the network's attentions; none where the library has no such operator."""
        if not hasattr(self.trt, "IAttentionOutputLayer"):
            return
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.type == self.trt.LayerType.ATTENTION_OUTPUT:
                layer.__class__ = self.trt.IAttentionOutputLayer  # handed out as its base class
                yield layer.attention


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
