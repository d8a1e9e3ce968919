"""The dry run of Torch-TensorRT: for real where `make dryrun` set it up, and what it says."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ditc.export.torch_network import NotConvertibleError
from ditc.runtime.manifest import Manifest
from ditc.tools import dryrun
from ditc.tools.dryrun import Coverage, cover, main
from ditc.tools.dryrun_graphs import CASES, Case, Graph, graphs, zoo_cases
from ditc.tools.method_plans import SPARING

PYTHON = Path(__file__).parent.parent / ".venv-dryrun" / "bin" / "python"
needs_environment = pytest.mark.skipif(
    not (PYTHON.parent.parent / "installed").exists(),
    reason="waits for Torch-TensorRT in .venv-dryrun: make dryrun",
)
COMPILE = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests import engines
from ditc.export import compile
sched = engines.planned_schedule(torch.float16, 1)
compile(sched, sys.argv[1], target="torch-tensorrt:sm89", precision="fp16", weights=sys.argv[3],
        cache=Path(sys.argv[1]).parent / "cache", jobs=2)
"""
SMALL = ("DiT", "band:3 fp32")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PYTHON, *command], capture_output=True, text=True, check=False)


@needs_environment
def test_every_operator_of_a_tiny_model_is_converted(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    done = run("-m", "ditc.tools.dryrun", " ".join(SMALL), "-o", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())
    assert {method for row in rows for method in row["methods"].split() if method != "→"} == {
        "full", "kept", *SPARING,
    }  # fmt: skip
    assert all(row["unsupported"] == {} and row["partitions"] == 1 for row in rows)
    assert all(row["layers"] >= row["operators"] > 20 for row in rows)
    assert re.search(rf"^{len(rows)} of {len(rows)} graphs become one engine", done.stdout, re.M)


@needs_environment
@pytest.mark.parametrize("weights", ["inputs", "baked"])
def test_engines_straight_from_torch(tmp_path: Path, weights: str) -> None:
    """Built for sm89 without a GPU: dedicated kernels, the names that a bundle binds by."""
    done = run("-c", COMPILE, str(tmp_path / "b"), str(PYTHON.parent.parent.parent), weights)
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = Manifest.from_json((tmp_path / "b" / "manifest.json").read_text())
    info = manifest.engine
    assert info is not None
    assert (manifest.target, info.library, info.weights) == (
        "torch-tensorrt", "tensorrt_rtx", weights,
    )  # fmt: skip
    assert info.capabilities == ("sm89",)
    assert info.decomposed == {}
    assert not info.refittable
    sizes = [(tmp_path / "b" / bucket.graph).stat().st_size for bucket in manifest.buckets]
    assert all(size > 10_000 for size in sizes)


def test_the_cases_are_every_kind_of_graph() -> None:
    """Methods, orders of halves, windows, precisions, prologue, folding; joint and cross."""
    options = [case.options for case in CASES]
    for kind in ("band", "block", "tile", "fp32", "fp16", "bf16", "fold", "guide", "prologue"):
        assert any(kind in text for text in options), kind
    programs = [make() for make in {case.program for case in CASES if case.title != "demo"}]
    assert {program.cfg for program in programs} == {"cond-first", "uncond-first", None}
    kinds = {site.kind for program in programs for site in program.sites}
    assert kinds == {"self", "cross", "joint"}
    case = next(case for case in CASES if (case.title, case.window) == ("DiT", "band:3"))
    found = list(graphs(case))
    assert {m for graph in found for m in graph.methods.split()} >= {"full", "kept", *SPARING}
    assert len(zoo_cases(["PixArt"])) == 1
    assert len(zoo_cases()) > 50


def fake_compiler(monkeypatch: pytest.MonkeyPatch, unsupported: dict[str, int]) -> ModuleType:
    """Have a partitioner that finds nodes by their operators."""
    module = ModuleType("torch_tensorrt.dynamo._compiler")
    given = []

    def compile_(exported, *, arg_inputs, **settings) -> None:
        given.append((arg_inputs, settings))
        total = len(
            exported.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default)
        )
        module.dryrun_stats_display(
            SimpleNamespace(
                unsupported_ops=unsupported,
                total_ops_in_graph=total,
                tensorrt_graph_count=1 + len(unsupported),
            ),
            True,
        )

    module.compile, module.dryrun_stats_display, module.given = compile_, print, given
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("unsupported", [{}, {"aten.nonzero": 2}])
def test_what_is_read_off_the_partitioner(
    unsupported: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fake_compiler(monkeypatch, unsupported)

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x.sin().sin() + y

    path = tmp_path / "graph.pt2"
    example = (torch.zeros(2, 3), torch.zeros(3, dtype=torch.float16))
    torch.export.save(torch.export.export(Twice(), example), path)
    network = SimpleNamespace(num_layers=7)
    monkeypatch.setattr(dryrun, "make_network", lambda job: SimpleNamespace(network=network))
    dynamo = SimpleNamespace(package=SimpleNamespace(Input=SimpleNamespace))
    found = cover(dynamo, path)
    assert found == Coverage(2, unsupported, 1 + len(unsupported), 7)
    assert found.whole == (not unsupported)
    assert module.dryrun_stats_display is print
    ((inputs, settings),) = module.given
    assert [(entry.shape, entry.dtype) for entry in inputs] == [
        ((2, 3), torch.float32), ((3,), torch.float16),
    ]  # fmt: skip
    assert settings["dryrun"]
    assert settings["min_block_size"] == 1
    assert settings["attn_bias_is_causal"] is False

    def refuse(job: object) -> None:
        raise NotConvertibleError("Torch-TensorRT: no")

    monkeypatch.setattr(dryrun, "make_network", refuse)
    assert not cover(dynamo, path).whole


@pytest.mark.parametrize(
    ("coverage", "code", "last"),
    [
        (Coverage(40, layers=90), 0, "2 of 2 graphs become one engine; 80 operators"),
        (Coverage(40, {"aten.nonzero": 2}, 3), 1, "0 of 2 graphs become one engine; 80 operators"),
    ],
)
def test_the_table_and_the_exit_code(
    coverage: Coverage,
    code: int,
    last: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def two(case: Case) -> list[Graph]:
        lowered = SimpleNamespace(graph=b"")
        return [Graph(case, name, "ast", lambda: lowered) for name in ("b00", "b01")]

    monkeypatch.setattr(dryrun, "graphs", two)
    monkeypatch.setattr(dryrun, "import_dynamo", lambda _: None)
    monkeypatch.setattr(dryrun, "_heading", lambda _: "heading")
    monkeypatch.setattr(dryrun, "cover", lambda *_: coverage)
    assert main(["demo block:20"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last
    assert re.split(r"\s{2,}", lines[1])[:4] == ["demo", "block:20 fp32", "b00", "ast"]
    assert lines[1].endswith("2 × aten.nonzero") == bool(code)


def test_where_torch_tensorrt_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # nothing of torch is replaced
    assert main(["demo block:20"]) == 1
    assert capsys.readouterr().err.startswith("dryrun: torch_tensorrt can't be imported: ")
    assert main(["no such model"]) == 1
    assert capsys.readouterr().err == "dryrun: no model is called no such model\n"
