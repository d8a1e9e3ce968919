"""The machine that a report was made on, as far as it can be asked."""

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

__all__ = ["PACKAGES", "describe"]

PACKAGES = (
    "torch",
    "triton",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "torch-tensorrt",
    "diffusers",
)


def describe(device: str) -> dict[str, str | int | None]:
    """Return names and versions; None for what isn't installed, or can't be asked."""
    found: dict[str, str | int | None] = {
        "device": device,
        "processor": platform.processor() or platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "sm": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": cudnn,
        }
    return found | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = answer.stdout.split()
    return lines[0] if answer.returncode == 0 and lines else None
