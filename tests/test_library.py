"""Which library builds a target's engines, and what is said where it can't."""

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ditc.export import compile as compile_bundle
from ditc.export import library
from ditc.export.library import Library, find_library
from ditc.runtime.errors import LoweringError
from ditc.runtime.targets import parse_target

from .compiled import small_schedule

HERE = torch.__version__.partition("+")[0]
MINOR = HERE.rpartition(".")[0]


def refused(target: str) -> str:
    with pytest.raises(LoweringError) as caught:
        find_library(parse_target(target))
    return str(caught.value)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Distributions that are there, as far as Torch-TensorRT is asked for; torch is for CUDA."""
    found: dict[str, str] = {}
    monkeypatch.setattr(library, "_version", lambda dist: found.get(dist, ""))
    monkeypatch.setattr(library, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(library, "gpu_at_hand", lambda: ("Fake H100", "sm90"))
    return found


def fake(monkeypatch: pytest.MonkeyPatch, name: str, version: str, *gpus: str) -> None:
    module = ModuleType(name)
    module.__version__ = version
    module.ComputeCapability = SimpleNamespace(__members__=dict.fromkeys(("NONE", *gpus)))
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.skipif(find_spec("torch_tensorrt") is not None, reason="needs it not installed")
def test_without_torch_tensorrt_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(LoweringError) as caught:
        compile_bundle(small_schedule(), tmp_path / "b", target="torch-tensorrt:sm89")
    assert str(caught.value) == (
        "target torch-tensorrt:sm89 needs Torch-TensorRT, which isn't installed: install ditc's "
        "extra [tensorrt] (in a clone: pip install '.[tensorrt]') for the GPU at hand, or pip "
        "install torch-tensorrt-rtx of torch "
        f"{HERE} to build for others"
    )
    assert not list(tmp_path.iterdir())


def test_a_torch_without_cuda(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    installed["torch-tensorrt"] = f"{MINOR}.0"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert refused("torch-tensorrt") == (
        "target torch-tensorrt: Torch-TensorRT needs a torch that was built for CUDA, and torch "
        f"{torch.__version__} wasn't: pip install 'torch==={HERE}', which is"
    )


def test_a_torch_tensorrt_for_another_torch(installed: dict[str, str]) -> None:
    installed["torch-tensorrt-rtx"] = "2.7.1"
    assert refused("torch-tensorrt:sm89") == (
        "target torch-tensorrt:sm89: torch-tensorrt-rtx 2.7.1 is for torch 2.7, and torch "
        f"{torch.__version__} is installed: pip install 'torch-tensorrt-rtx=={MINOR}.*'"
    )


def test_what_it_builds_with(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    installed["torch-tensorrt"] = f"{MINOR}.0"
    fake(monkeypatch, "tensorrt", "10.16.1.11")
    made = f"torch-tensorrt {MINOR}.0"
    assert find_library(parse_target("torch-tensorrt")) == Library(
        "tensorrt", "10.16.1.11", ("sm90",), torch=made, gpu="Fake H100"
    )
    assert "builds with tensorrt, for the GPU at hand" in refused("torch-tensorrt:sm89")
    del installed["torch-tensorrt"]
    installed["torch-tensorrt-rtx"] = f"{MINOR}.1"
    fake(monkeypatch, "tensorrt_rtx", "1.5.0.114", "SM86", "SM89")
    found = find_library(parse_target("torch-tensorrt:sm89"))
    assert found == Library(
        "tensorrt_rtx", "1.5.0.114", ("sm89",), torch=f"torch-tensorrt-rtx {MINOR}.1"
    )
    assert refused("torch-tensorrt") == (
        "target torch-tensorrt: name the GPUs to build for, of sm86, sm89, as "
        "torch-tensorrt:sm89,sm120"
    )
    assert refused("torch-tensorrt:sm90").endswith(
        "tensorrt_rtx 1.5.0.114 doesn't build for sm90, only for sm86, sm89"
    )
