"""The `ditc` command: what each one writes, exit codes, and which run without torch."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from PIL import Image

from ditc.passes import Window, capture, record
from ditc.runtime import Bundle
from ditc.tools.cli import main

from . import models
from .compiled import demo_bundle, planned, sampling_bundle, small_bundle, workshop
from .kills import bytes_of
from .test_export_bundle import tree

COMMANDS = ("demo", "search", "compile", "run", "inspect", "diff", "compare", "verify", "bench")
Capture = pytest.CaptureFixture[str]


def fails(capsys: Capture, *arguments: object) -> str:
    """Return the one line on standard error of a command that exits with 1."""
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("ditc: ")
    assert "Traceback" not in captured.err
    return last.removeprefix("ditc: ")


def misused(capsys: Capture, *arguments: str) -> str:
    """Return what a command says that exits with 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


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


def test_compile_demo_says_what_came_of_it(capsys: Capture) -> None:
    place = demo_bundle()
    manifest = Bundle.open(place, threads=1).manifest
    assert (manifest.cfg, manifest.steps, len(manifest.buckets)) == ("cond-first", 3, 2)
    assert manifest.sampler is not None
    assert manifest.sampler.scheduler == "FlowMatchEulerDiscreteScheduler"


FACTORY = """
from ditc.passes import Recording
from tests import models

def make():
    return Recording(models.small(), models.plain_kwargs(), "cond-first", None)

def twice():
    cond, uncond = (models.plain_kwargs(seed, batch=2) for seed in (0, 1))
    scaled = ("the pipeline scales what guidance makes of the halves",)
    return Recording(models.small(), cond, "separate", None, uncond, obstacles=scaled)

def wrong():
    return models.small()
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the current folder, a plan beside it."""
    (tmp_path / "my_models.py").write_text(FACTORY)
    program = capture(models.small(), models.plain_kwargs(), "cond-first")
    planned(program, "full", "ast").save(tmp_path / "plan.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent.parent), *sys.path])
    yield tmp_path
    sys.modules.pop("my_models", None)


def test_compile_a_factory(capsys: Capture, factory: Path) -> None:
    assert main(["compile", "my_models:make", "--plan", "plan.json", "-o", "out/bundle"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "capture: done\ncompile: done\n"
    foretold, told = captured.out.splitlines()[:2]
    assert foretold.startswith("in memory at once, predicted for 2 samples: 0.")
    assert ", 1 slot 0.01 MB and what the prologue keeps 0.0" in foretold
    assert told.startswith("out/bundle: 2 buckets for 2 steps, 0.")
    assert " of attention and " in captured.out
    assert Bundle.open(factory / "out" / "bundle", threads=1).steps == 2


def test_compile_refuses(capsys: Capture, factory: Path) -> None:
    def told(model: str, *more: str, plan: str = "plan.json") -> str:
        message = fails(capsys, "compile", model, "--plan", plan, "-o", "bundle", *more)
        assert not [path for path in factory.iterdir() if "bundle" in path.name]
        return message

    assert told("my_models:make", plan="none.json").startswith("plan none.json: can't be read: ")
    assert told("my_models:missing").startswith("model my_models:missing: can't be imported: ")
    assert told("no_such:make").startswith("model no_such:make: can't be imported: ")
    assert told(":make").startswith("model :make: can't be imported: ")
    assert told("my_models:wrong") == (
        "model my_models:wrong: the factory returned PlainDenoiser, expected a "
        "ditc.passes.Recording"
    )
    assert told("./no/such/folder") == "model ./no/such/folder: there is no such folder"
    assert told("no/such/folder").startswith(
        "model no/such/folder: is neither 'demo', a pipeline folder, package.module:factory, "
    )
    assert told("my_models:make", "--call", "[1]") == "--call: expected a JSON object, found list"
    assert told("my_models:make", "--call", "{").startswith("--call: no valid JSON: ")
    assert told("demo").startswith("plan is for tests.models.PlainDenoiser, the program is ")
    text = (factory / "plan.json").read_text()
    (factory / "plan.json").write_text(text.replace('"full"', '"wa-rs"'))
    assert "wa-rs before any full step" in told("my_models:make")
    (factory / "plan.json").write_text(text.replace('"version": 1', '"version": 2'))
    assert "version 2 is newer than 1: upgrade ditc" in told("my_models:make")


def test_compile_under_limits(capsys: Capture, factory: Path) -> None:
    def told(*more: str) -> list[str]:
        given = ["my_models:make", "--plan", "plan.json", "-o", "bundle", *more]
        assert main(["compile", *given]) == 0
        return capsys.readouterr().out.splitlines()

    assert told("--max-slot-bytes", "1")[0] == (
        "1 slot given up, least valuable first: attentions.0.output"
    )
    assert told("--max-buckets", "1")[1] == (
        "2 graphs were merged to 1, which keeps 0.0% of what the plan saves and costs 2.00 x at "
        "attention; --max-buckets all merges none"
    )
    assert main(["inspect", "bundle"]) == 0
    assert "    1                      0.0%   2.00 x   here" in capsys.readouterr().out.splitlines()
    given = ["compile", "my_models:make", "--plan", "plan.json", "-o", "bundle"]
    assert "none: is no folder, expected a bundle" in fails(capsys, *given, "--near", "none")
    assert "max_memory_bytes is 9, but weights" in fails(capsys, *given, "--max-memory-bytes", "9")


def test_a_compile_stays_near_what_it_replaces(capsys: Capture, factory: Path) -> None:
    """A step that differs builds two graphs at most, and a compile over its result none."""
    program = capture(models.small(), models.plain_kwargs(), "cond-first")
    names = ("full", "wa-rs", "ast", "asc", "wa-rs", "wa-rs+asc", "ast", "asc")
    plan = planned(program, *names, window=Window(3))
    plan.save(factory / "first.json")
    changed = plan
    for site, method in zip(plan.sites, ("asc", "full"), strict=False):
        changed = changed.replace(4, site, method)
    changed.save(factory / "second.json")

    def built(path: str, place: str, *more: str) -> int:
        given = ["--max-buckets", "4", "--cache", "cache", *more]
        assert main(["compile", "my_models:make", "--plan", path, "-o", place, *given]) == 0
        lines = capsys.readouterr().out.splitlines()
        return int(next(line for line in lines if "graphs built" in line).split()[0])

    assert built("first.json", "bundle") >= 4
    assert built("first.json", "bundle") == 0
    before = bytes_of(factory / "bundle")
    assert built("second.json", "bundle") in (0, 1, 2)
    after = bytes_of(factory / "bundle")
    assert after != before
    assert built("second.json", "bundle") == 0
    assert bytes_of(factory / "bundle") == after
    built("second.json", "fresh", "--near", "bundle")
    assert bytes_of(factory / "fresh") == after
    built("second.json", "anew", "--regroup")
    built("second.json", "bundle", "--regroup")
    assert bytes_of(factory / "bundle") == bytes_of(factory / "anew")
    # The plan of what is replaced is checked before it is followed.
    (factory / "anew" / "plan.json").write_text((factory / "first.json").read_text())
    given = ["compile", "my_models:make", "--plan", "second.json", "-o", "other"]
    assert "plan.json: " in fails(capsys, *given, "--near", "anew")


def test_near_that_is_left_aside_says_so(capsys: Capture, factory: Path) -> None:
    given = ["compile", "my_models:make", "--plan", "plan.json"]
    assert main([*given, "-o", "first"]) == 0
    capsys.readouterr()
    assert main([*given, "-o", "second", "--max-buckets", "1", "--near", "first"]) == 0
    assert "--near first is left aside: it was compiled for another" in capsys.readouterr().out
    assert main([*given, "-o", "second", "--max-buckets", "all", "--near", "first"]) == 0
    assert "--near first is left aside: no steps are merged" in capsys.readouterr().out
    assert main([*given, "-o", "whole", "--max-buckets", "all"]) == 0
    assert "whole: doesn't tell what it was asked for" in fails(
        capsys, *given, "-o", "third", "--near", "whole"
    )
    assert "not allowed with argument" in misused(
        capsys, *given, "-o", "third", "--near", "first", "--regroup"
    )


def test_compile_leaves_other_folders_alone(capsys: Capture, factory: Path) -> None:
    before = tree(factory)
    message = fails(capsys, "compile", "my_models:make", "--plan", "plan.json", "-o", factory)
    assert message == f"{factory} is there and is no bundle: remove it, or write somewhere else"
    assert [name for name in tree(factory) if "__pycache__" not in name] == before


def pipeline() -> DiTPipeline:
    transformer = models.randomised(
        DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=3,
            out_channels=3,
            num_layers=1,
            norm_num_groups=1,
            sample_size=models.SIZE,
        )
    )
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=3)
    pipe = DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_two_calls_a_step(factory: Path, capsys: Capture) -> None:
    arguments = ["compile", "my_models:twice", "--plan", "plan.json", "-o", "bundle"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "no sampler in the bundle, which is to be attached: the pipeline scales what" in told
    manifest = Bundle.open("bundle", threads=1).manifest
    assert (manifest.cfg, manifest.sampler) == ("separate", None)
    assert main(["verify", "bundle"]) == 0
    assert main(["inspect", "bundle"]) == 0
    shown = capsys.readouterr().out
    assert "buckets run all 2 steps" in shown
    assert shown.index("the conditional call:") < shown.index("the unconditional call:")
    assert main(["bench", "bundle", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["runs", "2", "2"]
    assert main(["report", "bundle", "-o", "report.html"]) == 0
    message = fails(capsys, "search", "my_models:twice", "-o", "found.json", "--steps", "2")
    assert message.endswith("put the bundle into the pipeline with ditc.runtime.diffusers.attach")


def test_compile_a_saved_pipeline(capsys: Capture, tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "pipe")
    call = {"class_labels": [7]}
    recording = record(pipe, call={"num_inference_steps": 2, **call})
    planned(recording.capture(), "full", "ast").save(tmp_path / "plan.json")
    arguments = ["compile", str(tmp_path / "pipe"), "--plan", str(tmp_path / "plan.json")]
    arguments += ["-o", str(tmp_path / "bundle")]
    capsys.readouterr()
    assert "refuses its arguments" in fails(capsys, *arguments)
    assert not (tmp_path / "bundle").exists()
    assert main([*arguments, "--call", json.dumps(call)]) == 0
    told = capsys.readouterr().err.splitlines()
    assert (told[0], told[-1]) == ("capture: done", "compile: done")
    bundle = Bundle.open(tmp_path / "bundle", threads=1)
    assert bundle.manifest.cfg == "cond-first"
    assert bundle.manifest.sampler is not None
    assert bundle.manifest.sampler.scheduler == "DDIMScheduler"
    latents = bundle.generate(guidance_scale=1.5)
    assert latents.shape == (1, 3, models.SIZE, models.SIZE)
    out = tmp_path / "out.png"
    running = ["run", str(tmp_path / "bundle"), "-o", str(out), "--guidance-scale", "1.5"]
    assert main([*running, "--threads", "1"]) == 0
    with torch.no_grad():
        decoded = pipe.vae.decode(torch.from_numpy(latents) / pipe.vae.config.scaling_factor).sample
    picture = pipe.numpy_to_pil((decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())[0]
    with Image.open(out) as found:
        off = np.abs(np.asarray(found).astype(int) - np.asarray(picture))
    assert off.max() <= 1
    assert main([*arguments, "--call", json.dumps(call), "--no-decoder"]) == 0
    assert Bundle.open(tmp_path / "bundle", threads=1).manifest.decoder is None


def test_run_writes_arrays_and_pictures(capsys: Capture, tmp_path: Path) -> None:
    options = ["--seed", "3", "--input", "class_labels=5", "--negative", "class_labels=10"]
    options += ["--guidance-scale", "1.5", "--threads", "1"]
    for name in ("out.npy", "out.png"):
        place = tmp_path / name
        assert main(["run", str(sampling_bundle()), "-o", str(place), *options]) == 0
        assert capsys.readouterr().out == f"{place}: [1, 3, 10, 10], seed 3\n"
    expected = Bundle.open(sampling_bundle(), threads=1).generate(
        seed=3,
        guidance_scale=1.5,
        class_labels=np.array([5]),
        negative={"class_labels": np.array([10])},
    )
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    with Image.open(tmp_path / "out.png") as picture:
        assert (picture.size, picture.mode) == ((10, 10), "RGB")
        shown = np.asarray(picture)
    scaled = np.clip((expected[0] + 1) * 127.5, 0, 255).round().astype(np.uint8)
    np.testing.assert_array_equal(shown, scaled.transpose(1, 2, 0))


def test_run_takes_conditioning_from_a_file(capsys: Capture, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.array([5]))
    arguments = ["run", str(sampling_bundle()), "-o", str(tmp_path / "a.npy"), "--input"]
    assert main([*arguments, f"class_labels={tmp_path / 'labels.npy'}"]) == 0
    assert main([*arguments[:3], str(tmp_path / "b.npy"), "--input", "class_labels=5"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_run_refuses(capsys: Capture, tmp_path: Path) -> None:
    def told(*more: object, out: str = "out.npy") -> str:
        message = fails(capsys, "run", sampling_bundle(), "-o", tmp_path / out, *more)
        assert tree(tmp_path) == []
        return message

    assert told(out="out.jpg").endswith("expected a name that ends in .png or .npy or .gif or .mp4")
    assert "can't be written: " in told(out="missing/out.npy")
    assert told("--input", "prompt=1") == (
        "--input prompt=1: expected NAME=VALUES, with a name of class_labels"
    )
    assert told("--negative", "class_labels").startswith("--negative class_labels: expected NAME=")
    assert told("--input", "class_labels=1.5") == "--input class_labels: 1.5 doesn't fit int64"
    assert told("--input", "class_labels=cat").startswith("--input class_labels: could not convert")
    assert told("--input", f"class_labels={tmp_path}/none.npy").startswith("--input class_labels: ")
    assert "expected (1,) for the conditional half or (2,)" in told("--input", "class_labels=1,2,3")
    twice = ("--input", "class_labels=1", "--input", "class_labels=2")
    assert told(*twice) == "--input class_labels: is given twice, expected once"
    assert "'CUDAExecutionProvider' isn't in this ONNX Runtime" in told(
        "--provider", "CUDAExecutionProvider"
    )
    assert told("--guidance-scale", "nan").startswith("guidance_scale is nan")


def test_run_refuses_a_picture_of_latents_before_it_generates(
    capsys: Capture, tmp_path: Path
) -> None:
    """The bundle has no sampler either, which generating would have told."""
    message = fails(capsys, "run", small_bundle(), "-o", tmp_path / "out.png")
    assert message == (
        "result [2, 25, 16] is no picture of 1 or 3 channels: write it as .npy and decode it"
    )


def test_run_of_a_bundle_without_sampler(capsys: Capture, tmp_path: Path) -> None:
    message = fails(capsys, "run", small_bundle(), "-o", tmp_path / "out.npy")
    assert message.startswith("the bundle has no sampler")


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


def test_factories_that_fail(capsys: Capture, factory: Path) -> None:
    code = 'number = 5\ndef broken():\n    raise RuntimeError("first\\nsecond")\n'
    with (factory / "my_models.py").open("a") as file:
        file.write(code)
    for name, told in (
        ("my_models:broken", "model my_models:broken: raised RuntimeError: first second"),
        ("my_models:number", "'int' object is not callable"),
        (".relative:make", "model .relative:make: can't be imported"),
    ):
        assert told in fails(capsys, "compile", name, "--plan", "plan.json", "-o", "bundle")


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
