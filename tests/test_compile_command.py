"""`ditc compile`: of factories and saved pipelines; what it says, refuses and leaves alone."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from ditc.passes import Window, capture, record
from ditc.runtime import Bundle
from ditc.runtime.diffusers import attach
from ditc.tools.cli import main

from . import models
from .commands import Capture, fails, misused, pipeline
from .compiled import demo_bundle, planned
from .kills import bytes_of
from .test_export_bundle import tree


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
    assert "step 0, site attentions.0: is wa-rs, expected full" in told("my_models:make")
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


def test_a_call_that_the_pipeline_breaks_on(capsys: Capture, tmp_path: Path) -> None:
    """Where the pipeline's own code raises, one line says what; whose fault it is isn't known."""
    pipeline().save_pretrained(tmp_path / "pipe")
    call = json.dumps({"class_labels": [2000]})
    message = fails(
        capsys, "search", tmp_path / "pipe", "-o", tmp_path / "plan.json", "--call", call
    )
    assert message == (
        f"model {tmp_path / 'pipe'}: DiTPipeline raised IndexError: index out of range in self: "
        "check --call"
    )


def test_a_scheduler_that_no_table_holds_is_left_out(capsys: Capture, tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.scheduler = DDIMScheduler(clip_sample=True)
    pipe.save_pretrained(tmp_path / "pipe")
    call = {"class_labels": [7]}
    recording = record(pipe, call={"num_inference_steps": 2, **call})
    planned(recording.capture(), "full", "full").save(tmp_path / "plan.json")
    arguments = ["compile", str(tmp_path / "pipe"), "--plan", str(tmp_path / "plan.json")]
    arguments += ["-o", str(tmp_path / "bundle"), "--call", json.dumps(call)]
    message = fails(capsys, *arguments)
    assert "build it with clip_sample=False, or compile without a sampler (--no-sampler)" in message
    assert main([*arguments, "--no-sampler"]) == 0
    bundle = Bundle.open(tmp_path / "bundle", threads=1)
    assert bundle.manifest.sampler is None
    call |= {"num_inference_steps": 2, "output_type": "np"}
    whole = pipe(**call, generator=torch.manual_seed(0)).images
    attach(pipe, bundle)
    np.testing.assert_allclose(
        pipe(**call, generator=torch.manual_seed(0)).images, whole, atol=1e-4
    )


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
