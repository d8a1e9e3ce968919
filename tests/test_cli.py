"""The `ditc` command: what each one writes, exit codes, and which run without torch."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from ditc.tools.cli import main

from .commands import Capture, fails, misused
from .compiled import sampling_bundle, small_bundle, workshop

COMMANDS = ("demo", "search", "compile", "run", "inspect", "diff", "compare", "verify", "bench")


def test_version_and_help(capsys: Capture) -> None:
    for option in ("--version", "--help"):
        with pytest.raises(SystemExit) as caught:
            main([option])
        assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"ditc {version('ditc')}\n")
    assert all(f"\n    {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(capsys: Capture, command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: ditc {command}")


def test_usage_errors(capsys: Capture) -> None:
    assert "required: COMMAND" in misused(capsys)
    assert "invalid choice: 'paint'" in misused(capsys, "paint")
    assert "--plan --variant is required" in misused(capsys, "compile", "demo", "-o", "x")
    assert "0 is not at least 1" in misused(capsys, "bench", "x", "--rounds", "0")
    compiling = ("compile", "no/such/model", "--plan", "p", "-o", "x")
    assert "target 'coreml' is not known" in misused(capsys, *compiling, "--target", "coreml")
    assert "invalid choice: 'both'" in misused(capsys, *compiling, "--weights", "both")
    assert "invalid choice: 'fp8'" in misused(capsys, *compiling, "--precision", "fp8")
    assert "argument --seed: " in misused(capsys, "run", "x", "-o", "y", "--seed", "z")


def test_verify(capsys: Capture) -> None:
    assert main(["verify", str(small_bundle())]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{small_bundle()}: 8 files (0.")
    assert out.endswith("are as written, 4 buckets run all 4 steps\n")
    assert main(["verify", str(small_bundle()), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    size = sum(path.stat().st_size for path in small_bundle().iterdir())
    size -= (small_bundle() / "manifest.json").stat().st_size
    assert found == {"ok": True, "files": 8, "bytes": size, "steps": 4}


def test_verify_refuses_what_was_altered(capsys: Capture, tmp_path: Path) -> None:
    for path in small_bundle().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    graph = tmp_path / "b01.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    assert "b01.onnx: has " in fails(capsys, "verify", tmp_path)
    graph.unlink()
    assert "b01.onnx: is missing" in fails(capsys, "verify", tmp_path)
    assert "is no folder" in fails(capsys, "verify", tmp_path / "none")


def test_bench(capsys: Capture) -> None:
    assert main(["bench", str(small_bundle()), "--rounds", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["buckets"]) == ["b00", "b01", "b02", "b03"]
    for timing in found["buckets"].values():
        assert len(timing["rounds_ms"]) == 2
        assert 0 < timing["low_ms"] <= timing["median_ms"] <= timing["high_ms"]
    medians = [timing["median_ms"] for timing in found["buckets"].values()]
    before = found["prologue"]["median_ms"] if found["prologue"] else 0.0
    assert found["generation_ms"] == pytest.approx(sum(medians) + before)
    assert main(["bench", str(small_bundle()), "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (7 if found["prologue"] else 6)
    assert lines[-1].startswith("a generation of 4 steps: ")


WITHOUT_TORCH = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "diffusers", "transformers", "onnx", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from ditc.tools.cli import main

bundle, out = sys.argv[1:]
plan, site = bundle + "/plan.json", "transformer_blocks.0.attn1"
codes = [
    main(["inspect", bundle]),
    main(["inspect", bundle, "--json"]),
    main(["verify", bundle]),
    main(["bench", bundle, "--rounds", "1"]),
    main(["run", bundle, "-o", out]),
    main(["inspect", plan]),
    main(["inspect", plan, "--json"]),
    main(["inspect", plan, "--why", "1", site]),
    main(["inspect", plan, "--why", "1", site, "--json"]),
    main(["inspect", "--schema"]),
    main(["diff", plan, plan]),
    main(["diff", plan, plan, "--json"]),
]
assert codes == [0] * 12, codes
assert main(["compile", "demo", "--plan", plan, "-o", out + ".bundle"]) == 1
from ditc import passes
try:
    passes.capture
except ModuleNotFoundError as error:
    assert error.name == "torch"
else:
    raise AssertionError("captures without torch")
assert not {"torch", "diffusers", "ditc.export"} & set(sys.modules)
"""


def test_bundles_and_plans_are_used_without_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, sampling_bundle(), tmp_path / "out.png"],
        capture_output=True,
        text=True,
        check=False,
        cwd=workshop(),
    )
    assert done.returncode == 0, done.stderr
    missing = (
        "ditc: torch is not installed: install ditc's extra [compile] (in a clone: "
        "pip install '.[compile]')"
    )
    assert done.stderr.splitlines()[-1] == missing
    assert [line for line in done.stderr.splitlines() if "not installed" in line] == [missing]
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_readers_that_leave_early() -> None:
    code = "import sys; from ditc.tools.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "inspect", str(small_bundle()), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert (running.stderr.read(), running.wait()) == (b"", 0)


def test_names_that_no_file_can_have(capsys: Capture) -> None:
    assert "File name too long" in fails(capsys, "inspect", "a" * 300)
    assert "File name too long" in fails(capsys, "verify", "a" * 300)


def test_a_request_to_end_cleans_up() -> None:
    code = (
        "import os, signal, sys\n"
        "from ditc.tools import cli\n"
        "def run(_):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM); signal.pause()\n"
        "    finally: print('cleaned up')\n"
        "cli._verify = run\n"
        "sys.exit(cli.main(['verify', 'x']))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.stdout, found.stderr, found.returncode) == ("cleaned up\n", "", 143)
