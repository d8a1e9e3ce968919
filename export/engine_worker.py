"""Build one TensorRT engine in as many attempts as it takes; run by path, as a process.

Attention may not be decomposed at first, so that an engine that builds has the library's dedicated
kernel. Where that fails, those attentions alone are decomposed that don't build by themselves; then
all of them; then the graph is taken in which attention is written out.

Each attempt is a process of its own, this file run again: plans are byte-equal only across fresh
processes, a build that fails may take its process with it, and what it takes of memory is its own.
So this imports the standard library and the TensorRT module it is told, nothing of ditc or torch
unless a graph needs it: see `engine_library.py`.

    python -P engine_worker.py JOB.json     writes what JOB.json names: the plan, and its result
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

PARENT_DIED = 1
"""`PR_SET_PDEATHSIG` of prctl(2)."""
NO_KERNEL = ("is_decomposable()", "dedicated kernel")
"""What the library says where an attention that may not be decomposed has no kernel."""
ANY_BATCH = 2
SHORT = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}


def sibling(name: str) -> Any:
    """Return a module that lies beside this file: not one of a package, which would load torch."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


library = sibling("engine_library")

Form = list[tuple[str, list[int]] | None]
"""Dtype and shape of query, key, value and mask: what a kernel is chosen by."""


def _form(attention: Any) -> Form:
    tensors = [*(attention.get_input(index) for index in range(3)), attention.mask]
    return [None if t is None else (t.dtype.name, list(t.shape)) for t in tensors]


def _try(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Build the graph's engine; yield what is known before, and what came of it."""
    trt = library.EngineLibrary(job, sibling)
    network, parser = trt.parsed()
    attentions = {attention.name: attention for attention in trt.attentions(network)}
    known = {
        "version": trt.version,
        "forms": {name: _form(attention) for name, attention in attentions.items()},
    }
    yield known
    for name in job["decompose"]:
        attentions[name].decomposable = True
    yield {**known, "bytes": trt.write_plan(network)}
    del parser


def _probe(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Build one attention by itself, not to be decomposed."""
    built = library.EngineLibrary(job, sibling)
    trt, network = built.trt, built.network()
    inputs = [
        None
        if entry is None
        else network.add_input(f"x{n}", trt.DataType[entry[0]], _fixed(entry[1]))
        for n, entry in enumerate(job["form"])
    ]
    kind = trt.AttentionNormalizationOp.SOFTMAX
    attention = network.add_attention(*inputs[:3], kind, False)
    if inputs[3] is not None:
        attention.mask = inputs[3]
    network.mark_output(attention.get_output(0))
    yield {"bytes": built.write_plan(network)}


def _fixed(shape: Sequence[int]) -> list[int]:
    """Return a shape of one size: kernels don't depend on the batch, the only axis that varies."""
    return [ANY_BATCH if size < 0 else size for size in shape]


def _attempt(job: Mapping[str, Any], **more: object) -> dict[str, Any]:
    """Run an attempt and return its result, with `error` where it failed, however it did."""
    place = Path(job["result"]).with_name("attempt.json")
    result = place.with_name("attempt-result.json")
    result.unlink(missing_ok=True)
    told = {**job, **more, "result": str(result), "parent": os.getpid()}
    place.write_text(json.dumps(told), encoding="utf-8")
    command = [sys.executable, "-P", __file__, str(place)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    text = done.stdout.decode(errors="replace")
    found: dict[str, Any] = {}
    if result.exists():
        found = json.loads(result.read_text(encoding="utf-8"))
    if "bytes" not in found and "error" not in found:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        last = lines[-1] if lines else "it said nothing"
        found["error"] = f"the process of the build ended with {done.returncode} ({last})"
        found["crashed"] = True
        found["signal"] = -done.returncode
    return found


def _lacks_kernel(found: Mapping[str, Any]) -> bool:
    """Whether an attempt failed as it does for want of a kernel: with a message, or a crash."""
    if "error" not in found or not found.get("forms"):
        return False
    told = any(mark in found["error"] for mark in NO_KERNEL)
    return told or found.get("signal") in (signal.SIGSEGV, signal.SIGABRT)


def _without_kernel(job: Mapping[str, Any], forms: Mapping[str, Any]) -> list[str]:
    """Return the attentions that don't build by themselves."""
    known: dict[str, bool] = {}
    for form in forms.values():
        key = json.dumps(form)
        if key not in known:
            known[key] = "error" not in _attempt(job, form=form, plan=os.devnull, shapes={})
    return [name for name, form in forms.items() if not known[json.dumps(form)]]


def _reason(form: Sequence[Any]) -> str:
    (dtype, shape), (_, keys), _, mask = form
    masked = "" if mask is None else ", masked"
    return (
        f"no kernel for {SHORT.get(dtype, dtype)}, head dim {shape[-1]}, "
        f"{shape[-2]} × {keys[-2]} tokens{masked}"
    )


def _build(job: Mapping[str, Any]) -> dict[str, Any]:
    decompose: list[str] = []
    found = _attempt(job, decompose=decompose)
    forms = found.get("forms", {})
    if _lacks_kernel(found):
        decompose = _without_kernel(job, forms)
        found = _attempt(job, decompose=decompose)
    if _lacks_kernel(found):
        decompose = list(forms)
        found = _attempt(job, decompose=decompose)
    if _lacks_kernel(found):
        found = _attempt(job, decompose=[], **job["written_out"])
    if "error" in found:
        return {"error": found["error"], "crashed": found.get("crashed", False)}
    reasons = {name: _reason(forms[name]) for name in decompose}
    return {"version": found["version"], "bytes": found["bytes"], "decomposed": reasons}


def _die_with(parent: int) -> None:
    """End this process when its parent does, however that ends."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PARENT_DIED, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _write_attempt(job: Mapping[str, Any]) -> None:
    """Run one attempt and write its result, and before it what is known by then."""
    result = Path(job["result"])
    try:
        for found in (_probe if "form" in job else _try)(job):
            result.write_text(json.dumps(found), encoding="utf-8")
    except library.RefusedError as refusal:
        known = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
        result.write_text(json.dumps({**known, "error": str(refusal)}), encoding="utf-8")


def main(path: str) -> None:
    """Run the job of a file and write its result."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    _die_with(job["parent"])
    if "decompose" in job or "form" in job:
        _write_attempt(job)
        return
    started = time.monotonic()
    result = _build(job)
    result["seconds"] = time.monotonic() - started
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
