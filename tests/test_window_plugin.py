"""PTX of the window kernel for GPUs that aren't here, and what TensorRT is told of it."""

import hashlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ditc.export.window_plugin import PLUGIN, find_plugins, plugin_call, register_window_plugin
from ditc.export.window_ptx import _without_scratch, compile_ptx
from ditc.passes.pattern import pattern_of
from ditc.passes.tile_window import TileWindow
from ditc.passes.window import Window
from ditc.passes.window_kernel import Blocks, Shape
from ditc.runtime.errors import LoweringError

pytest.importorskip("triton", reason="waits for Triton: Linux only")

CAPABILITIES = (80, 86, 89, 90, 120)
COMPILE = """
import json, sys, torch
from ditc.export.window_ptx import compile_ptx
from ditc.passes.pattern import pattern_of
from ditc.passes.window import Window
from ditc.passes.window_kernel import Shape, blocks_of

found = []
for capability in json.loads(sys.argv[1]):
    shape, window = Shape(4396, 72, 72, torch.float16), Window(512)
    blocks = blocks_of(shape, window)
    pattern = pattern_of(window, shape.tokens, (0, 300), blocks.queries)
    kernel = compile_ptx(shape, pattern, 72**-0.5, 32, blocks, capability)
    found.append([kernel.entry, kernel.ptx.decode(), kernel.grid, kernel.threads,
                  kernel.shared_bytes])
print(json.dumps(found))
"""


def compiled(capabilities: tuple[int, ...], cache: Path) -> list[list]:
    """Compile in a process whose kernels aren't interpreted, with an empty cache."""
    given = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, json.dumps(capabilities)]
    environment = given | {"TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list]:
    made = compiled(CAPABILITIES, tmp_path_factory.mktemp("first"))
    return dict(zip(CAPABILITIES, made, strict=True))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_ptx_of_every_gpu(capability: int, kernels: dict[int, list]) -> None:
    entry, ptx, grid, threads, shared = kernels[capability]
    assert f".target sm_{capability}" in ptx
    assert ptx.endswith("\n")
    head = ptx.partition(f".visible .entry {entry}(")[2].partition(")")[0]
    assert head.count(".param .u64") == head.count(".param") == 6
    assert (grid, threads) == ([3 + 32, 32], 256)
    assert 0 < shared <= 99 * 1024  # what a block may have on every one of them
    assert any(product in ptx for product in ("mma.sync", "wgmma"))
    assert "window_triton.py" not in ptx  # no path of this machine


def test_ptx_is_the_same_each_time(kernels: dict[int, list], tmp_path: Path) -> None:
    (again,) = compiled((89,), tmp_path)
    digests = {hashlib.sha256(made[1].encode()).hexdigest() for made in (again, kernels[89])}
    assert len(digests) == 1


def test_scratch_that_is_read_is_refused() -> None:
    names = [f".param .u64 k_param_{number}" for number in range(7)]
    code = ".visible .entry k(\n" + ",\n".join(names) + "\n)\n{ ld.param.u64 %r, [k_param_5]; }"
    assert _without_scratch(code, "k") == code.replace(",\n.param .u64 k_param_6", "")
    read = code.replace("[k_param_5]", "[k_param_6]")
    with pytest.raises(LoweringError, match="its code needs k_param_6"):
        _without_scratch(read, "k")


@pytest.mark.skipif(torch.cuda.is_available(), reason="waits for a machine without a GPU")
def test_interpreted_kernels_are_not_compiled() -> None:
    shape = Shape(64, 16, 16, torch.float16)
    pattern = pattern_of(Window(8), 64, (0, 0), 32)
    with pytest.raises(LoweringError, match="unset TRITON_INTERPRET"):
        compile_ptx(shape, pattern, 0.25, 4, Blocks(32, 32, 4, 2), 89)


def test_a_call_holds_the_pattern_and_how_it_is_cut() -> None:
    shape = Shape(70, 16, 16, torch.float16)
    attributes, rows, runs = plugin_call(shape, Window(8), (0, 6), 0.25, 89)
    assert attributes == {
        "scale": 0.25, "tile": 1, "reach": 8, "origin": 6, "queries": 128, "keys": 64,
        "warps": 8, "stages": 3, "capability": 89,
    }  # fmt: skip
    assert rows.tolist() == [[0, 6, 0, 1], [6, 70, 1, 3]]
    assert runs.tolist() == [[0, 0, 70, 70], [0, 0, 6, 6], [6, 6, 6, 70]]
    tiles, rows, runs = plugin_call(shape, TileWindow((8, 8), (8, 4), (0, 0)), (64, 70), 0.25, 89)
    assert (tiles["tile"], tiles["queries"]) == (0, 32)
    assert (rows.dtype, rows.shape, runs.shape) == (torch.int32, (3, 4), (5, 4))


class Interface(ModuleType):
    """What of `tensorrt.plugin` is called here; it keeps what it is told."""

    class TensorDesc:
        def __init__(self, *sizes: int) -> None:
            self.shape_expr = [SimpleNamespace(constant_value=size) for size in sizes]
            self.dtype = SimpleNamespace(name="HALF")

        def like(self) -> "Interface.TensorDesc":
            return self

    class KernelLaunchParams(SimpleNamespace):
        pass

    class SymIntExprs(list):
        def __init__(self, length: int) -> None:
            super().__init__([None] * length)

    def __init__(self) -> None:
        super().__init__("tensorrt.plugin")
        self.functions: dict[str, object] = {}

    def register(self, name: str):
        return lambda function: self.functions.setdefault(f"describe {name}", function)

    def aot_impl(self, name: str):
        return lambda function: self.functions.setdefault(f"implement {name}", function)


def test_what_tensorrt_is_told() -> None:
    """Names and types as its checks read them: inputs, attributes, then outputs and tactic."""
    plugins = Interface()
    register_window_plugin(plugins)
    describe = plugins.functions[f"describe {PLUGIN}"]
    implement = plugins.functions[f"implement {PLUGIN}"]
    inputs = ["query", "key", "value", "rows", "runs"]
    attributes = list(plugin_call(Shape(8, 16, 16, torch.float16), Window(2), (0, 0), 1.0, 89)[0])
    signature = inspect.signature(describe)
    assert list(signature.parameters) == [*inputs, *attributes]
    assert {signature.parameters[name].annotation for name in inputs} == {Interface.TensorDesc}
    assert signature.parameters["scale"].annotation is float
    assert list(inspect.signature(implement).parameters) == [
        *inputs, *attributes, "outputs", "tactic",
    ]  # fmt: skip
    query = Interface.TensorDesc(2, 16, 64, 72)
    assert describe(query, query, query, query, query, scale=1.0) is query


def test_its_code_and_launch_are_those_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compile_ptx(*given: object) -> SimpleNamespace:
        asked.append(given)
        return SimpleNamespace(entry="k", ptx=b"code", grid=(3, 32), threads=64, shared_bytes=9)

    monkeypatch.setattr("ditc.export.window_plugin.compile_ptx", compile_ptx)
    plugins = Interface()
    register_window_plugin(plugins)
    shape = Shape(4396, 72, 72, torch.float16)
    attributes, rows, runs = plugin_call(shape, Window(512), (0, 300), 72**-0.5, 89)
    sizes = [(2, 16, 4396, 72)] * 3 + [tuple(rows.shape), tuple(runs.shape)]
    tensors = [Interface.TensorDesc(*size) for size in sizes]
    implement = plugins.functions[f"implement {PLUGIN}"]
    entry, ptx, launch, extra = implement(*tensors, *attributes.values(), (tensors[0],), 0)
    assert (entry, ptx, list(extra)) == ("k", b"code", [])
    assert vars(launch) == {"grid_x": 3, "grid_y": 32, "block_x": 64, "shared_mem": 9}
    ((given_shape, pattern, scale, heads, blocks, capability),) = asked
    assert (given_shape, scale, heads, capability) == (shape, 72**-0.5, 32, 89)
    assert blocks == Blocks(128, 64, 8, 3)
    real = pattern_of(Window(512), 4396, (0, 300), 128)
    assert (pattern.tile, pattern.reach, pattern.origin) == (real.tile, real.reach, real.origin)
    assert len(pattern.rows) == len(real.rows)


def test_libraries_without_the_interface() -> None:
    with pytest.raises(LoweringError, match=r"no_such_library takes no plugins from Python here"):
        find_plugins("no_such_library")


def test_tensorrt_rtx_has_no_such_interface() -> None:
    pytest.importorskip("tensorrt_rtx", reason="waits for tensorrt-rtx")
    with pytest.raises(LoweringError, match=r"needs tensorrt 10\.8 or later"):
        find_plugins("tensorrt_rtx")
