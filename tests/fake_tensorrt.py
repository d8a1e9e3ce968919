"""A TensorRT that builds nothing: its plans say what they were built of, and how.

Copied as `tensorrt.py` into a folder on the path, so that processes that build engines import it.
"""

import ctypes
import hashlib
import json
from types import SimpleNamespace

import onnx

__version__ = "10.16.1.11"
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = range(3)

    def __init__(self) -> None: ...

    def log(self, severity: int, message: str) -> None: ...


class BuilderFlag:
    TF32, REFIT = "TF32", "REFIT"


class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1


class SerializationFlag:
    INCLUDE_REFIT = "INCLUDE_REFIT"


DataType = SimpleNamespace(FLOAT="float32", HALF="float16", BF16="bfloat16", INT64="int64")


class TimingCache:
    def __init__(self, raw: bytes) -> None:
        self.entries = set(raw.decode().split())

    def serialize(self) -> bytes:
        return " ".join(sorted(self.entries)).encode()

    def combine(self, other: "TimingCache", ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.entries |= other.entries
        return True


class Config:
    def __init__(self) -> None:
        self.flags = {BuilderFlag.TF32}
        self.timings: TimingCache | None = None

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def create_timing_cache(self, raw: bytes) -> TimingCache | None:
        return None if b"damaged" in raw else TimingCache(raw)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if "another-gpu" in cache.entries:
            return False
        self.timings = cache
        return True

    def get_timing_cache(self) -> TimingCache:
        assert self.timings is not None
        return self.timings


class Builder:
    def __init__(self, logger: ILogger) -> None: ...

    def create_network(self, flags: int) -> SimpleNamespace:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return SimpleNamespace(num_layers=0)

    def create_builder_config(self) -> Config:
        return Config()

    def build_serialized_network(self, network: SimpleNamespace, config: Config) -> memoryview:
        known = len(config.get_timing_cache().entries)
        config.get_timing_cache().entries.add(network.digest)
        plan = {
            "graph": network.digest,
            "flags": sorted(config.flags),
            "known": known,
            "weights": network.weights,
        }
        return memoryview(json.dumps(plan).encode())


class OnnxParser:
    def __init__(self, network: SimpleNamespace, logger: ILogger) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        model = onnx.load(path)
        self.network.digest = hashlib.sha256(model.SerializeToString()).hexdigest()
        self.network.weights = {
            tensor.name: hashlib.sha256(tensor.raw_data).hexdigest()
            for tensor in model.graph.initializer
        }
        return True


class Engine:
    def __init__(self, plan: dict) -> None:
        self.plan = plan

    def create_serialization_config(self) -> Config:
        return Config()

    def serialize_with_config(self, config: Config) -> bytes:
        return json.dumps({**self.plan, "kept": sorted(config.flags - {"TF32"})}).encode()


class Runtime:
    def __init__(self, logger: ILogger) -> None: ...

    def deserialize_cuda_engine(self, raw: bytes) -> Engine:
        return Engine(json.loads(raw))


class Weights:
    def __init__(self, dtype: str, address: int, count: int) -> None:
        self.raw = ctypes.string_at(address, count * SIZES[dtype])


class Refitter:
    def __init__(self, engine: Engine, logger: ILogger) -> None:
        self.engine, self.logger, self.given = engine, logger, {}

    def get_all_weights(self) -> list[str]:
        return list(self.engine.plan["weights"])

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        if not weights.raw.strip(b"\0"):
            self.logger.log(ILogger.ERROR, "all are\n zero")
            return False
        self.given[name] = hashlib.sha256(weights.raw).hexdigest()
        return True

    def refit_cuda_engine(self) -> bool:
        self.engine.plan["weights"].update(self.given)
        return True
