"""Every form of an attention computes the same; what is timed is told."""

import json

import numpy as np
import onnxruntime
import pytest

from ditc.passes import Window
from ditc.tools.bench_window import main, measure
from ditc.tools.window_forms import Form, Shape, forms

SHAPE = Shape(batch=1, heads=2, tokens=52, head_dim=8)
RADIUS, BLOCK = 8, 4


def attended(form: Form, parts: dict[str, np.ndarray]) -> np.ndarray:
    """Return what a form makes of query, key and value, `[batch, heads, tokens, head_dim]`."""
    session = onnxruntime.InferenceSession(
        form.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    given = dict(parts)
    if form.merged:
        given["query"] = given["query"].transpose(0, 2, 1, 3).reshape(1, SHAPE.tokens, -1)
    (found,) = session.run(None, given)
    if form.merged:
        found = found.reshape(1, SHAPE.tokens, SHAPE.heads, -1).transpose(0, 2, 1, 3)
    return found


def expected(window: Window | None, parts: dict[str, np.ndarray]) -> np.ndarray:
    """Return the same by its definition, pair by pair, in fp64."""
    query, key, value = (parts[name].astype(np.float64) for name in ("query", "key", "value"))
    scores = query @ key.swapaxes(2, 3) * SHAPE.head_dim**-0.5
    for i in range(SHAPE.tokens) if window is not None else ():
        for j in range(SHAPE.tokens):
            if abs(i // window.block - j // window.block) > window.radius // window.block:
                scores[:, :, i, j] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def test_forms_agree_with_the_definition() -> None:
    drawn = np.random.default_rng()
    size = (SHAPE.batch, SHAPE.heads, SHAPE.tokens, SHAPE.head_dim)
    parts = {n: drawn.standard_normal(size, np.float32) for n in ("query", "key", "value")}
    made = forms(SHAPE, RADIUS, BLOCK)
    assert [form.window for form in made] == [
        *(None, None, None),
        *(Window(RADIUS), Window(RADIUS), Window(RADIUS, BLOCK)),
    ]
    for form in made:
        np.testing.assert_allclose(attended(form, parts), expected(form.window, parts), atol=2e-6)


def test_what_is_measured() -> None:
    found = measure(forms(SHAPE, RADIUS, BLOCK), SHAPE, threads=1, repeats=2)
    assert all(result.error < 1e-5 and result.median_ms > 0 for result in found)
    assert all(result.ratio is not None for result in found)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [
        "--heads",
        "1",
        "--tokens",
        "24",
        "--head-dim",
        "8",
        "--repeats",
        "1",
        "--threads",
        "1",
    ]
    assert main([*sizes, "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)][-1].startswith(
        "blocked"
    )
    assert main([*sizes, "--batch", "0"]) == 1
    assert capsys.readouterr().err == "error: batch is 0, expected at least 1\n"
