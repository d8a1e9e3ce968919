"""The sampler table's JSON, and the loop that runs it."""

import json
import math

import numpy as np
import pytest

from ditc.runtime.errors import BundleError, EngineError
from ditc.runtime.fields import JsonValue
from ditc.runtime.sampler import SamplerState, SamplerTable

SHAPE = (2, 3, 5)


def two_step_table() -> SamplerTable:
    return SamplerTable(
        scheduler="TwoStep",
        timesteps=(999.0, 500.5, 1 / 3),
        init_noise_scale=14.5,
        input_scale=(0.25, 0.5, 1.0),
        latents=((0.9, 0.0), (0.7, 0.1), (0.5, -0.2)),
        outputs=((-0.3, 0.0), (1.5, -0.5), (2.0, 0.25)),
        noise=(0.0, 0.125, 0.0),
    )


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def test_json_round_trip_is_equal_byte_for_byte() -> None:
    table = two_step_table()
    text = json.dumps(table.to_json(), sort_keys=True, indent=2)
    again = SamplerTable.from_json(json.loads(text))
    assert again == table
    assert json.dumps(again.to_json(), sort_keys=True, indent=2) == text


def test_json_reads_whole_numbers_as_floats() -> None:
    value = {**two_step_table().to_json(), "noise": [0, 1, 0]}
    assert SamplerTable.from_json(value).noise == (0.0, 1.0, 0.0)


def test_properties() -> None:
    table = two_step_table()
    assert (table.steps, table.history, table.stochastic) == (3, 2, True)
    still = SamplerTable.from_json({**table.to_json(), "noise": [0.0, 0.0, 0.0]})
    assert not still.stochastic


MALFORMED: list[tuple[str, JsonValue, str]] = [
    ("scheduler", 3, "scheduler: expected a string, found a int"),
    ("timesteps", None, "timesteps: expected a list, found a NoneType"),
    ("timesteps", [], "timesteps: is empty"),
    ("timesteps", [1.0, 2.0], "input_scale: has 3 entries, expected 2"),
    ("timesteps", [1.0, 2.0, math.nan], "timesteps: holds nan, expected finite"),
    ("timesteps", [1.0, 2.0, "3"], r"timesteps\[2\]: expected a number, found a str"),
    ("timesteps", [1.0, 2.0, True], r"timesteps\[2\]: expected a number, found a bool"),
    ("timesteps", [1.0, 2.0, 10**400], r"timesteps\[2\]: is an integer beyond float64"),
    ("init_noise_scale", "1", "init_noise_scale: expected a number, found a str"),
    ("init_noise_scale", True, "init_noise_scale: expected a number, found a bool"),
    ("init_noise_scale", [1.0], "init_noise_scale: expected a number, found a list"),
    ("init_noise_scale", math.inf, "init_noise_scale: holds inf"),
    ("input_scale", [1.0], "input_scale: has 1 entries, expected 3"),
    ("input_scale", [1.0, -math.inf, 1.0], "input_scale: holds -inf"),
    ("input_scale", {"0": 1.0}, "input_scale: expected a list, found a dict"),
    ("latents", "x", "latents: expected a list, found a str"),
    ("latents", [], "latents: has 0 entries, expected 3"),
    ("latents", [[1.0, 0.0]], "latents: has 1 entries, expected 3"),
    ("latents", [[], [], []], r"latents\[0\]: is empty"),
    ("latents", [[1.0, 0.0], [1.0], [1.0, 0.0]], r"latents\[1\]: has 1 entries, expected 2"),
    ("latents", [[1.0, 0.0], 1.0, [1.0, 0.0]], r"latents\[1\]: expected a list, found a float"),
    (
        "latents",
        [[1.0, 0.0], [1.0, False], [1.0, 0.0]],
        r"latents\[1\]\[1\]: .* found a bool",
    ),
    ("latents", [[1.0, 0.0], [1.0, math.nan], [1.0, 0.0]], r"latents\[1\]: holds nan"),
    ("latents", [[1.0, 0.5], [1.0, 0.0], [1.0, 0.0]], r"latents\[0\]: weighs a step before"),
    ("outputs", [[1.0], [1.0], [1.0]], r"outputs\[0\]: has 1 entries, expected 2"),
    ("outputs", [[1.0, 0.5], [1.0, 0.0], [1.0, 0.0]], r"outputs\[0\]: weighs a step before"),
    (
        "outputs",
        [[1.0, 0.0], [1.0, None], [1.0, 0.0]],
        r"outputs\[1\]\[1\]: .* found a None",
    ),
    ("noise", [0.0, 0.0], "noise: has 2 entries, expected 3"),
    ("noise", [0.0, 0.0, math.inf], "noise: holds inf"),
    ("comment", "hello", "unknown field 'comment'"),
]


@pytest.mark.parametrize(("field", "value", "message"), MALFORMED)
def test_malformed_json_is_refused_by_field(field: str, value: JsonValue, message: str) -> None:
    with pytest.raises(BundleError, match=f"^sampler[.:] ?{message}"):
        SamplerTable.from_json({**two_step_table().to_json(), field: value})


@pytest.mark.parametrize("field", list(two_step_table().to_json()))
def test_missing_field_is_named(field: str) -> None:
    value = two_step_table().to_json()
    del value[field]
    with pytest.raises(BundleError, match=f"^sampler: the field '{field}' is missing"):
        SamplerTable.from_json(value)


def test_json_of_another_kind_is_refused() -> None:
    with pytest.raises(BundleError, match="expected an object, found a list"):
        SamplerTable.from_json([])


def test_loop_follows_the_formula() -> None:
    table, state = two_step_table(), SamplerState(two_step_table())
    x = [draw(0)]
    m, z = [draw(1), draw(2), draw(3)], draw(4)
    for k in range(3):
        x.append(state.advance(k, x[k], m[k], z))
    x0, m0, m1, m2 = (a.astype(np.float64) for a in (x[0], *m))
    x1 = 0.9 * x0 - 0.3 * m0
    x2 = 0.7 * x1 + 0.1 * x0 + 1.5 * m1 - 0.5 * m0 + 0.125 * z
    x3 = 0.5 * x2 - 0.2 * x1 + 2.0 * m2 + 0.25 * m1
    # Latents are rounded to float32 after each step, half a unit in the last place of about 8.
    np.testing.assert_allclose(x[3], x3, rtol=0, atol=2e-6)
    assert x[3].dtype == np.float32
    assert table.noise[0] == 0


def test_model_input_is_the_scaled_latents() -> None:
    state, x = SamplerState(two_step_table()), draw(0)
    assert state.model_input(0, x).dtype == np.float32
    np.testing.assert_array_equal(state.model_input(0, x), x / 4)
    np.testing.assert_array_equal(state.model_input(2, x), x)


def test_a_step_is_rounded_once() -> None:
    table = SamplerTable("Cancelling", (0.0,), 1.0, (1.0,), ((1e8,),), ((-1e8,),), (0.0,))
    ones = np.ones(1, np.float32)
    close = np.nextafter(ones, np.float32(2))
    expected = 1e8 * (np.float64(close) - 1)
    np.testing.assert_array_equal(SamplerState(table).advance(0, close, ones), expected)


def test_step_0_starts_again() -> None:
    state = SamplerState(two_step_table())
    runs = []
    for _ in range(2):
        x = draw(0)
        for k in range(2):
            x = state.advance(k, x, draw(k + 1), draw(9))
        runs.append(x)
    np.testing.assert_array_equal(*runs)


def test_callers_may_reuse_their_buffers() -> None:
    kept, reused = SamplerState(two_step_table()), SamplerState(two_step_table())
    x, m, z = draw(0), draw(1), draw(2)
    first = kept.advance(0, x, m)
    latents, output = x.copy(), m.copy()
    reused.advance(0, latents, output)
    latents[:], output[:] = np.nan, np.nan
    np.testing.assert_array_equal(
        reused.advance(1, first, draw(3), z), kept.advance(1, first, draw(3), z)
    )


def test_steps_out_of_turn_are_refused() -> None:
    state, x = SamplerState(two_step_table()), draw(0)
    with pytest.raises(EngineError, match="step 1 is out of turn, expected step 0"):
        state.advance(1, x, x, x)
    state.advance(0, x, x)
    with pytest.raises(EngineError, match="step 2 is out of turn, expected step 1 or 0"):
        state.advance(2, x, x)
    for k in (-1, 3):
        with pytest.raises(EngineError, match=f"no step {k}, expected one of 0 to 2"):
            state.advance(k, x, x)
        with pytest.raises(EngineError, match=f"no step {k}"):
            state.model_input(k, x)


def test_wrong_shapes_and_missing_noise_leave_the_state_as_it_was() -> None:
    state, x = SamplerState(two_step_table()), draw(0)
    expected = SamplerState(two_step_table())
    state.advance(0, x, x)
    expected.advance(0, x, x)
    with pytest.raises(EngineError, match=r"step 1: the model output has shape \(3, 5\)"):
        state.advance(1, x, x[0], x)
    with pytest.raises(EngineError, match="step 1 of TwoStep adds noise and was given none"):
        state.advance(1, x, x)
    with pytest.raises(EngineError, match=r"step 1: the noise has shape \(1, 3, 5\)"):
        state.advance(1, x, x, x[:1])
    np.testing.assert_array_equal(state.advance(1, x, x, x), expected.advance(1, x, x, x))
