"""Sites cut out and timed: what is timed computes what the site does in the model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ditc.export import compile as compile_bundle
from ditc.passes import Method, Plan, capture, schedule
from ditc.runtime import Bundle
from ditc.tools import bench_sites
from ditc.tools.cli import main
from ditc.tools.latencies import Latencies
from ditc.tools.space import space_of

from . import models
from .samples import sample


@pytest.mark.parametrize("cfg", ["cond-first", "uncond-first"])
def test_a_site_cut_out_yields_what_it_does_in_the_model(cfg: str, tmp_path: Path) -> None:
    program = sample("dit", cfg).program
    space = space_of(program)
    entering = bench_sites._entering(program, space.pieces)
    part = space.pieces.sites[1]
    values = entering[part.site.name]
    sched = bench_sites._schedule(space, part, values)
    shown = {step: sched.plan.method(step, part.site.name) for step in range(sched.steps)}
    assert shown == {step: method for step, (method, _) in bench_sites.PLAIN.items()}
    for step, (_, keeps) in bench_sites.PLAIN.items():
        kinds = [slot.kind for slot in sched.bucket_of(step).writes]
        assert kinds == (["residual"] if keeps else ["output"] if step == 5 else [])
    bundle = Bundle.open(compile_bundle(sched, tmp_path / "site"), threads=1)
    arrays = {name: value.numpy() for name, value in values.items()}
    full = next(iter(part.whole(values).values())).numpy()
    half = slice(0, 2) if cfg == "cond-first" else slice(2, 4)
    for step in range(sched.steps):
        method = shown[step]
        expected = np.concatenate([full[half]] * 2) if method.shares_cfg else full
        # inputs are the same in all steps, so that windows with their residual are full attention;
        # the residual that step 3 reads is of a step that shared halves, as step 3 does
        found = bundle.step(step, **arrays)
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=f"step {step}, {method}")


def test_equal_sites_are_measured_once() -> None:
    program = sample("dit", "cond-first").program
    space = space_of(program)
    signatures = {bench_sites._signature(space, part) for part in space.pieces.sites}
    assert len(space.pieces.sites) == 3
    assert len(signatures) == 1
    measured = bench_sites.measure(space, rounds=2, threads=1)
    first, *others = measured.sites.values()
    assert all(found == first for found in others)
    assert set(first.ms) == set(Method)
    assert set(first.keeping_ms) == {Method.FULL, Method.ASC}
    assert measured.target == "onnx, CPUExecutionProvider"
    assert (measured.threads, measured.batch) == (1, program.latents.shape[0])
    assert all(taken > 0 for taken in (measured.step_ms, *first.ms.values()))
    measured.check(program, space.windows)


def test_without_halves_nothing_is_shared_across_cfg() -> None:
    program = sample("small", None).program
    measured = bench_sites.measure(space_of(program), rounds=1, threads=1)
    for found in measured.sites.values():
        assert set(found.ms) == {Method.FULL, Method.WA_RS, Method.AST}
        assert set(found.keeping_ms) == {Method.FULL}


class TwoWidths(nn.Module):
    """Two attentions, the second with twice the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))
        self.proj = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = x * t[:, None, None]
        for heads, qkv, proj in zip((1, 2), self.qkv, self.proj, strict=True):
            parts = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in qkv(x).chunk(3, -1))
            out = nn.functional.scaled_dot_product_attention(*parts)
            x = x + proj(out.transpose(1, 2).flatten(2))
        return x


def test_other_shapes_are_measured_apart() -> None:
    kwargs = {"x": models.noise(4, 6, 8), "t": torch.ones(4)}
    program = capture(models.randomised(TwoWidths()), kwargs, "cond-first")
    space = space_of(program)
    assert len({bench_sites._signature(space, part) for part in space.pieces.sites}) == 2


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "latency.json"
    command = ["bench", "demo", "--sites", "-o", str(out), "--rounds", "2", "--threads", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "transformer_blocks.5.attn1" in printed
    assert f"{out}: a whole step takes " in printed
    found = Latencies.load(out)
    assert len(found.sites) == 6
    assert json.loads(out.read_text())["for"]["latents"] == [1, 32, 32]


def test_misuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["bench", "demo", "--sites"], ["bench", "x", "-o", str(tmp_path / "y")]):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 2
        assert "--sites and --out go together" in capsys.readouterr().err
    assert main(["bench", "demo", "--sites", "-o", str(tmp_path / "no" / "y")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert main(["bench", "package.module:factory"]) == 1
    assert capsys.readouterr().err == (
        "ditc: package.module:factory: is no folder, expected a bundle: compile one there, or time "
        "a model's sites with --sites -o latency.json\n"
    )
    for option in (["--json"], ["--cuda-graphs"], ["--variant", "a"]):
        assert main(["bench", "demo", "--sites", "-o", str(tmp_path / "y"), *option]) == 1
        assert capsys.readouterr().err == (
            f"ditc: {option[0]}: is of bundles, --sites times a model and writes JSON to --out: "
            "leave it out\n"
        )


def test_a_plan_that_shows_all_methods_is_a_valid_one() -> None:
    program = sample("dit", "cond-first").program
    plan = Plan.uniform(program, len(bench_sites.PLAIN), "full")
    for step, (method, _) in bench_sites.PLAIN.items():
        for site in plan.sites:
            plan = plan.replace(step, site, method)
    assert len(schedule(program, plan).buckets) == 7
