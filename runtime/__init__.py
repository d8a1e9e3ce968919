"""Run a bundle with numpy and one inference engine, without torch."""

from .bundle import Bundle
from .engine import Backend, Engine
from .manifest import Manifest
from .null import NullBackend
from .ort import OrtBackend
from .sampler import SamplerState, SamplerTable

__all__ = [
    "Backend",
    "Bundle",
    "Engine",
    "Manifest",
    "NullBackend",
    "OrtBackend",
    "SamplerState",
    "SamplerTable",
]
