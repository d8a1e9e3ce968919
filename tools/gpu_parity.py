"""Parity of what runs on a device with the same schedule in fp32 on the CPU."""

import copy
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ditc.passes import Method, Plan, Program, Schedule, TorchSession, Window, capture, schedule
from ditc.passes.identity import CfgLayout

from .gpu_entries import AbsentError, Entry, attempt
from .gpu_models import Denoiser, JointDenoiser, ModelShape, arguments, seeded

__all__ = [
    "BACKENDS",
    "DTYPES",
    "MODELS",
    "PLANS",
    "TOLERANCES",
    "Case",
    "cases",
    "error_of",
    "parity",
]

SMALL = ModelShape(layers=3, width=48, heads=2, tokens=75, text_tokens=9, batch=4)
STEPS = 5
MODELS: Mapping[str, type[nn.Module]] = {"cross": Denoiser, "joint": JointDenoiser}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCES = {"fp32": 2e-5, "fp16": 1e-2, "bf16": 6e-2}
"""Largest error over largest value after three layers: a hundred or a few roundings of the dtype.

The reference has the same rounded weights and inputs, and computes in fp32.
"""
PLANS = (*(str(method) for method in Method), "mixed")
LAYOUTS: tuple[CfgLayout, ...] = ("cond-first", "uncond-first")
WINDOW = Window(11)


@dataclass(frozen=True)
class Case:
    """A model, its precision, the order of its halves and the methods of its plan."""

    model: str
    dtype: str
    cfg: CfgLayout
    plan: str

    def __str__(self) -> str:
        return f"{self.model}, {self.dtype}, {self.cfg}, {self.plan}"


@dataclass(frozen=True)
class _Pair:
    """A model captured twice: as it runs, and in fp32 with the same rounded weights."""

    program: Program
    reference: Program
    dtype: torch.dtype


Outputs = list[torch.Tensor]
Backend = Callable[[Schedule, torch.dtype, str], Outputs]


def cases(*, tiny: bool = False) -> tuple[Case, ...]:
    """Return every case, or a few of them for a dry run; those of one model in a row."""
    if tiny:
        return (
            Case("joint", "fp32", "uncond-first", "wa-rs+asc"),
            Case("cross", "fp16", "cond-first", "asc"),
            Case("cross", "bf16", "cond-first", "mixed"),
        )
    made = product(MODELS, DTYPES, LAYOUTS, PLANS)
    return tuple(Case(*each) for each in made)


def parity(device: str, chosen: Iterable[Case]) -> Iterator[Entry]:
    """Yield an entry for each case and backend."""
    for case in chosen:
        yield from (_entry(name, case, device) for name in BACKENDS)


def error_of(backend: str, case: Case, device: str) -> float:
    """Return the largest error over all steps of a case, relative to the largest value of each.

    Raises:
        AbsentError: if the backend isn't on this machine.
    """
    return _error(BACKENDS[backend], case, _pair(case.model, case.dtype, case.cfg), device)


def _entry(name: str, case: Case, device: str) -> Entry:
    title = f"{name}: {case}"
    entry = attempt("parity", title, lambda: {"error": error_of(name, case, device)})
    limit = TOLERANCES[case.dtype]
    if entry.status != "measured":
        return entry
    values = {**entry.values, "limit": limit}
    if not float(values["error"]) <= limit:  # nor is what isn't a number
        return Entry("parity", title, "failed", values, f"error above {limit:.0e}")
    return Entry("parity", title, "measured", values)


@lru_cache(maxsize=1)
def _pair(model: str, dtype: str, cfg: CfgLayout) -> _Pair:
    kind = DTYPES[dtype]
    module = seeded(MODELS[model](SMALL)).to(kind)
    return _Pair(
        capture(module, arguments(SMALL, 0, kind), cfg=cfg),
        capture(copy.deepcopy(module).float(), _rounded(0, kind), cfg=cfg),
        kind,
    )


def _rounded(step: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in arguments(SMALL, step, dtype).items()}


def _error(backend: Backend, case: Case, pair: _Pair, device: str) -> float:
    plan = _plan(pair.program, case.plan)
    found = backend(schedule(pair.program, plan), pair.dtype, device)
    session = TorchSession(schedule(pair.reference, plan, ignore_model=True))
    errors = []
    for step, value in enumerate(found):
        expected = session(step, **_rounded(step, pair.dtype))
        assert isinstance(expected, torch.Tensor)
        errors.append((value.float().cpu() - expected).abs().max() / expected.abs().max())
    return float(torch.stack(errors).max())  # not a number if one of them isn't


def _plan(program: Program, name: str) -> Plan:
    if name != "mixed":
        return Plan.uniform(program, STEPS, name, window=WINDOW)
    plan = Plan.uniform(program, STEPS, Method.FULL, window=Window(12, 4))
    draw = random.Random(5)
    for step in range(1, STEPS):
        for site in program.sites:
            if site.eligible:
                plan = plan.replace(step, site.name, draw.choice(list(Method)))
    return plan


def _in_torch(sched: Schedule, dtype: torch.dtype, device: str) -> Outputs:
    session = TorchSession(sched, device)
    found = []
    for step in range(sched.steps):
        out = session(step, **arguments(SMALL, step, dtype, device))
        assert isinstance(out, torch.Tensor)
        found.append(out)
    return found


def _in_onnxruntime(sched: Schedule, dtype: torch.dtype, device: str) -> Outputs:
    if dtype is torch.bfloat16:
        raise AbsentError("ONNX Runtime has few operators in bf16")
    try:
        import onnxruntime
    except ImportError as error:
        raise AbsentError(f"{error.name} is not installed") from error
    kind = "CUDA" if torch.device(device).type == "cuda" else "CPU"
    provider = f"{kind}ExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise AbsentError(f"ONNX Runtime has no {provider} here")
    return _in_bundle(sched, dtype, "onnx", (provider,))


def _in_tensorrt(
    library: str,
    target: str,
    sched: Schedule,
    dtype: torch.dtype,
    device: str,
    window_kernel: bool = False,
) -> Outputs:
    if torch.device(device).type != "cuda":
        raise AbsentError(f"{target} needs a GPU")
    if find_spec(library) is None:
        raise AbsentError(f"{library} is not installed")
    if target != "tensorrt" and find_spec("tensorrt_rtx") is not None:
        major, minor = torch.cuda.get_device_capability(device)
        target = f"{target}:sm{major}{minor}"
    return _in_bundle(sched, dtype, target, None, window_kernel)


def _in_bundle(
    sched: Schedule,
    dtype: torch.dtype,
    target: str,
    providers: tuple[str, ...] | None,
    window_kernel: bool = False,
) -> Outputs:
    """Compile a schedule in the precision it was captured in, and run the bundle."""
    try:
        from ditc.export import compile as compile_bundle
        from ditc.runtime import Bundle
    except ImportError as error:
        raise AbsentError(f"{error.name} is not installed") from error
    precision = next(name for name, kind in DTYPES.items() if kind is dtype)
    with tempfile.TemporaryDirectory(prefix="ditc-parity-") as folder:
        place, cache = Path(folder) / "bundle", Path(folder) / "cache"
        path = compile_bundle(
            sched, place, target, precision, cache=cache, jobs=1, window_kernel=window_kernel
        )
        bundle = Bundle.open(path, providers=providers)
        found = []
        for step in range(sched.steps):
            given = arguments(SMALL, step, dtype)  # of a bundle inputs and outputs are fp32
            out = bundle.step(step, **{n: v.float().numpy() for n, v in given.items()})
            assert isinstance(out, np.ndarray)
            found.append(torch.from_numpy(out))
    return found


BACKENDS: Mapping[str, Backend] = {
    "torch": _in_torch,
    "ONNX Runtime": _in_onnxruntime,
    "TensorRT-RTX": partial(_in_tensorrt, "tensorrt_rtx", "tensorrt-rtx"),
    "TensorRT": partial(_in_tensorrt, "tensorrt", "tensorrt"),
    "TensorRT, window kernel": partial(_in_tensorrt, "tensorrt", "tensorrt", window_kernel=True),
    "Torch-TensorRT": partial(_in_tensorrt, "torch_tensorrt", "torch-tensorrt"),
}
"""What runs a schedule, by name: given the schedule, the dtype and the device, the outputs."""
