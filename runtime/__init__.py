"""Run a bundle with numpy and one inference engine, without torch."""

from .bundle import Bundle
from .engine import Backend, Engine
from .errors import (
    BundleError,
    CaptureError,
    DitcError,
    EngineError,
    LoweringError,
    PassError,
    PlanError,
)
from .manifest import Manifest
from .null import NullBackend
from .ort import OrtBackend
from .sampler import SamplerState, SamplerTable

__all__ = [
    "Backend",
    "Bundle",
    "BundleError",
    "CaptureError",
    "DitcError",
    "Engine",
    "EngineError",
    "LoweringError",
    "Manifest",
    "NullBackend",
    "OrtBackend",
    "PassError",
    "PlanError",
    "SamplerState",
    "SamplerTable",
]
