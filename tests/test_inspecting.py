"""`ditc inspect`: what a bundle and a plan are, and what is refused."""

import json
import shutil
from pathlib import Path

from ditc.passes import Plan, plan_schema
from ditc.tools.cli import main

from .commands import Capture, fails
from .compiled import small_bundle


def test_inspect_a_bundle(capsys: Capture) -> None:
    assert main(["inspect", str(small_bundle())]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"bundle     {small_bundle()}"
    assert lines[1] == "model      tests.models.PlainDenoiser"
    assert lines[2] == "target     onnx, fp32, CFG cond-first"
    assert "input      x float32 [4, 25, 16] (latents)" in lines
    assert "slots      2 in 1 storage, 6.40 kB" in lines
    (left,) = (line for line in lines if line.startswith("left       "))
    assert left.endswith(" of the model's multiply-adds")
    assert lines[-3] == "attentions.0  #wc."
    assert lines[-1] == "full 25%, asc 25%, wa-rs 25%, ast 25%"
    assert [line.split()[0] for line in lines if line.startswith("b0")] == [
        "b00",
        "b01",
        "b02",
        "b03",
    ]


def test_inspect_a_bundle_whose_plan_was_changed(capsys: Capture, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle(), bundle)
    text = (bundle / "plan.json").read_text()
    (bundle / "plan.json").write_text(text.replace('"ast"', '"asc"', 1))
    assert main(["inspect", str(bundle)]) == 0
    (left,) = (
        line for line in capsys.readouterr().out.splitlines() if line.startswith("left       ")
    )
    assert left.startswith(f"left       not known: {bundle / 'plan.json'}: has the SHA-256 ")


def test_inspect_as_json_is_the_manifest(capsys: Capture) -> None:
    assert main(["inspect", str(small_bundle()), "--json"]) == 0
    assert capsys.readouterr().out == (small_bundle() / "manifest.json").read_text()


def test_inspect_a_plan(capsys: Capture) -> None:
    path = small_bundle() / "plan.json"
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"plan       {path}"
    assert "attentions.0  #wc." in lines
    assert "found by   no search" in lines
    plan = Plan.load(path)
    assert (
        f"left       {plan.attention_left():.1%} of attention and {plan.multiply_adds_left():.1%} "
        "of the model's multiply-adds"
    ) in lines
    assert 0.0 < plan.attention_left() < plan.multiply_adds_left() < 1.0
    assert main(["inspect", str(path), "--json"]) == 0
    assert capsys.readouterr().out == path.read_text()
    assert Plan.load(path).steps == 4


def test_a_plan_has_no_variants(capsys: Capture, tmp_path: Path) -> None:
    path = small_bundle() / "plan.json"
    for command in (
        ["inspect", path],
        ["inspect", path, "--why", "1", "attentions.0"],
        ["report", path, "-o", tmp_path / "report.html"],
    ):
        message = fails(capsys, *command, "--variant", "64x64")
        assert message == f"--variant 64x64: is of bundles, {path} is a file: leave it out"
    assert not list(tmp_path.iterdir())


def test_inspect_wants_all_files(capsys: Capture, tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    shutil.copytree(small_bundle(), place)
    for arguments in ((), ("--json",)):
        (place / "b01.onnx").unlink(missing_ok=True)
        assert "b01.onnx: is missing" in fails(capsys, "inspect", place, *arguments)
        (place / "b01.onnx").write_bytes(b"short")
        assert "b01.onnx: has 5 bytes, expected " in fails(capsys, "inspect", place, *arguments)


def test_inspect_shows_the_schema(capsys: Capture) -> None:
    assert main(["inspect", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == plan_schema()
    assert fails(capsys, "inspect").startswith("inspect: expected a bundle folder or plan.json")


def test_inspect_refuses(capsys: Capture, tmp_path: Path) -> None:
    assert fails(capsys, "inspect", tmp_path / "none").endswith(
        "no bundle folder and no plan file is there"
    )
    assert fails(capsys, "inspect", tmp_path) == (
        f"{tmp_path}: is no bundle: it holds no manifest.json: name a folder that 'ditc compile' "
        "wrote, or copy that whole"
    )
    (tmp_path / "plan.json").write_text("{}")
    assert 'expected an object with "format"' in fails(capsys, "inspect", tmp_path / "plan.json")
