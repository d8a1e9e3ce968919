"""Check an installed wheel without torch on a bundle of `smoke_bundle`: `smoke_wheel.py FOLDER`.

Runs from any folder with the interpreter of an environment that has the wheel, ONNX Runtime and
nothing of torch; says what passed, and exits with 1 if something didn't.
"""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import ditc.runtime
from ditc.runtime import Bundle

TOLERANCE = 1e-4
GUIDANCE_SCALE = 3.0
COMMAND = Path(sys.executable).with_name("ditc")


def check(passed: bool, otherwise: str) -> None:
    if not passed:
        raise SystemExit(f"FAILED: {otherwise}")


def close(found: np.ndarray, expected: np.ndarray) -> None:
    off = np.abs(found - expected).max() / np.abs(expected).max()
    check(off <= TOLERANCE, f"off by {off:.2g} of the largest value, expected {TOLERANCE:g}")


def is_the_wheel(place: Path) -> None:
    home = Path(ditc.runtime.__file__).resolve()
    check("site-packages" in home.parts, f"ditc is imported from {home}, expected the wheel")
    for folder in ("passes", "export", "runtime", "tools"):
        check((home.parents[1] / folder / "__init__.py").is_file(), f"the wheel has no {folder}")
    check((home.parents[1] / "tools" / "demo_model" / "config.json").is_file(), "no demo model")


def torch_is_absent(place: Path) -> None:
    for name in ("torch", "diffusers", "onnx"):
        check(importlib.util.find_spec(name) is None, f"{name} is there, which is to be absent")


def steps(place: Path) -> None:
    bundle = Bundle.open(place)
    inputs, expected = np.load(place.parent / "inputs.npz"), np.load(place.parent / "steps.npy")
    check(bundle.steps == len(expected), f"{bundle.steps} steps, expected {len(expected)}")
    for step in range(bundle.steps):
        found = bundle.step(step, **{name: inputs[name][step] for name in inputs})
        close(np.asarray(found), expected[step])


def generation(place: Path) -> None:
    start = np.load(place.parent / "start.npy")
    found = Bundle.open(place).generate(guidance_scale=GUIDANCE_SCALE, latents=start)
    close(found, np.load(place.parent / "latents.npy"))


def plans(place: Path) -> None:
    plan = str(place / "plan.json")
    said = ditc_says("inspect", plan)
    check("transformer_blocks.0.attn1  #w.cb" in said, f"inspect says {said!r}")
    said = ditc_says("inspect", plan, "--why", "2", "transformer_blocks.0.attn1")
    check("transformer_blocks.0.attn1: ast" in said, f"inspect --why says {said!r}")
    said = ditc_says("diff", plan, plan)
    check(said.startswith("0 of 10 cells differ"), f"diff says {said!r}")
    schema = json.loads(ditc_says("inspect", "--schema"))
    check(schema["$id"] == "urn:ditc:schema:plan:1", f"the schema is {schema['$id']!r}")


def commands(place: Path) -> None:
    said = ditc_says("--version")
    check(said == f"ditc {importlib.metadata.version('ditc')}\n", f"--version says {said!r}")
    said = ditc_says("inspect", str(place))
    check("sampler    DDIMScheduler" in said, f"inspect says {said!r}")
    said = ditc_says("verify", str(place))
    check("buckets run all 5 steps" in said, f"verify says {said!r}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.png"
        ditc_says("run", str(place), "--out", str(out), "--seed", "1")
        with Image.open(out) as picture:
            check(picture.size == (10, 10), f"run made a picture of {picture.size}")


def ditc_says(*arguments: str) -> str:
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False)
    check(done.returncode == 0, f"ditc {arguments[0]} exits with {done.returncode}: {done.stderr}")
    return done.stdout


CHECKS: tuple[Callable[[Path], None], ...] = (
    is_the_wheel,
    torch_is_absent,
    steps,
    generation,
    plans,
    commands,
)

if __name__ == "__main__":
    for check_of in CHECKS:
        check_of(Path(sys.argv[1]).resolve())
        sys.stdout.write(f"{check_of.__name__.replace('_', ' ')}: passed\n")
    check("torch" not in sys.modules, "torch was imported")
