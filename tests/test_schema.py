"""The published schema of plan files, held against the plans there are and the strict reader."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ditc.passes import Method, Plan, plan_schema
from ditc.passes.plan_file import parse_plan
from ditc.runtime.errors import PlanError
from ditc.tools.models import DEMO_PLAN as PLAN

from .compiled import sampling_bundle, small_bundle
from .reports import make_plan
from .samples import SAMPLES, mixed, sample

VALIDATOR = Draft202012Validator(plan_schema())
SCHEMA = Path(__file__).parent.parent / "passes" / "plan.schema.json"


def reader_accepts(record: object) -> bool:
    try:
        parse_plan(json.dumps(record), "plan")
    except PlanError as error:
        if "\n" in str(error):
            pytest.fail(f"several lines: {error}")
        return False
    return True


def both_refuse(record: object) -> bool:
    return not VALIDATOR.is_valid(record) and not reader_accepts(record)


def valid() -> dict[str, object]:
    record: dict[str, object] = json.loads(make_plan().to_json())
    assert reader_accepts(record)
    VALIDATOR.validate(record)
    return record


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(plan_schema())
    assert plan_schema() == json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert plan_schema()["$id"] == "urn:ditc:schema:plan:1"


def subschemas(schema: object) -> Iterator[dict[str, object]]:
    if isinstance(schema, dict):
        yield schema
        for part in schema.values():
            yield from subschemas(part)


def test_every_field_is_described() -> None:
    described = 0
    for schema in subschemas(plan_schema()):
        properties = schema.get("properties", {})
        assert isinstance(properties, dict)
        for name, entry in properties.items():
            assert entry.get("description", "").endswith("."), name
            described += 1
    assert described >= 25
    methods = plan_schema()["$defs"]["method"]["enum"]  # type: ignore[index,call-overload]
    assert methods == list(Method)


def test_the_plan_of_the_demo() -> None:
    VALIDATOR.validate(json.loads(PLAN.read_text(encoding="utf-8")))


def test_plans_in_bundles() -> None:
    for bundle in (small_bundle(), sampling_bundle()):
        VALIDATOR.validate(json.loads((bundle / "plan.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("model", SAMPLES)
def test_plans_of_every_sample(model: str) -> None:
    for cfg in ("cond-first", None):
        program = sample(model, cfg).program
        VALIDATOR.validate(json.loads(Plan.uniform(program, 3, "ast").to_json()))
        VALIDATOR.validate(json.loads(mixed(sample(model, cfg), 1).to_json()))


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from places(part, (*path, key))
    if isinstance(value, list):
        for index, part in enumerate(value):
            yield from places(part, (*path, index))


def holder(record: object, path: tuple[str | int, ...]) -> object:
    for key in path:
        record = record[key]  # type: ignore[index]
    return record


PLACES = list(places(json.loads(make_plan().to_json())))
FIELDS = [path for path in PLACES if path]
NAMED = [path for path in FIELDS if isinstance(path[-1], str) and path[0] != "losses"]


@pytest.mark.parametrize("path", NAMED, ids=lambda path: ".".join(map(str, path)))
def test_a_missing_field_is_refused(path: tuple[str | int, ...]) -> None:
    """The schema can't tell a field from a site's name; the reader can."""
    record = valid()
    del holder(record, path[:-1])[path[-1]]  # type: ignore[attr-defined]
    assert not reader_accepts(record)
    is_site = path[:-1] in (("windows",), ("cost", "sites"))
    assert VALIDATOR.is_valid(record) == is_site


OBJECTS = [
    path for path in PLACES if isinstance(holder(json.loads(make_plan().to_json()), path), dict)
]


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: ".".join(map(str, path)) or "plan")
def test_an_unknown_field_is_refused(path: tuple[str | int, ...]) -> None:
    record = valid()
    holder(record, path)["note"] = "x"  # type: ignore[index]
    assert both_refuse(record)


@pytest.mark.parametrize("path", FIELDS[::5], ids=lambda path: ".".join(map(str, path)))
@pytest.mark.parametrize("value", [True, "\x07", "", 1e300, -1.5, [{}], {"a": 1}], ids=repr)
def test_values_of_no_kind_that_is_asked_for(path: tuple[str | int, ...], value: object) -> None:
    """Nothing takes any of these, but the scale of guidance a negative number."""
    record = valid()
    holder(record, path[:-1])[path[-1]] = value  # type: ignore[index]
    if value == -1.5 and path == ("for", "guidance_scale"):
        assert VALIDATOR.is_valid(record)
        assert reader_accepts(record)
    else:
        assert not reader_accepts(record)
        a_row = path[0] == "losses" and len(path) == 2 and value == [{}]  # too short, that is
        assert VALIDATOR.is_valid(record) == a_row


def test_limits() -> None:
    for path, wrong in (
        (("for", "steps"), 10_001),
        (("for", "steps"), 0),
        (("for", "latents"), [0]),
        (("for", "cfg"), "both"),
        (("version",), 2),
        (("format",), "ditc-bundle"),
        (("cost", "rest"), -1),
        (("cost", "rest"), 2**63 + 1),
        (("found", "samples"), 0),
        (("found", "threshold"), 0),
        (("found", "threshold"), -0.3),
        (("found", "threshold"), 1e13),
        (("found", "speedup"), 0),
        (("found", "budget_ms"), 1e13),
        (("windows", "blocks.0.attn", "block"), 0),
        (("windows", "blocks.0.attn", "radius"), 2**31 + 1),
        (("windows", "blocks.0.attn"), {"grid": [2, 2], "tile": [1, 1]}),
        (("windows", "blocks.0.attn"), {"grid": [4], "tile": [1], "reach": [1]}),
        (("windows", "blocks.0.attn"), {"grid": [2, 2], "tile": [1, 1], "reach": [1, -1]}),
        (("cells",), []),
        (("cells", 1, 0), "wa_rs"),
        (("losses", 1, 0), {"wa_rs": 0.5}),
        (("losses", 1, 0), {"wa-rs": -0.5}),
        (("losses", 1, 0), {"wa-rs": 1e13}),
    ):
        record = valid()
        holder(record, path[:-1])[path[-1]] = wrong  # type: ignore[index]
        assert both_refuse(record), (path, wrong)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(FIELDS), JSON)
def test_what_the_schema_refuses_the_reader_refuses(
    path: tuple[str | int, ...], value: object
) -> None:
    record = copy.deepcopy(valid())
    holder(record, path[:-1])[path[-1]] = value  # type: ignore[index]
    if not VALIDATOR.is_valid(record):
        assert not reader_accepts(record)


def test_one_goal_at_most() -> None:
    record = valid()
    found = holder(record, ("found",))
    assert isinstance(found, dict)
    for name in ("speedup", "budget_ms"):
        found[name] = 2.5
        assert VALIDATOR.is_valid(record) == reader_accepts(record) == (name == "speedup")


def test_what_only_the_reader_refuses() -> None:
    """Lengths and names that have to match are beyond a schema, and what only step 0 has to be."""
    for path, wrong in (
        (("cells", 0, 1), "ast"),
        (("cells",), [["full"] * 3] * 3),
        (("cells", 0), ["full"] * 2),
        (("losses", 0), []),
        (("windows", "blocks.0.attn"), {"radius": 3, "block": 2}),
        (("for", "steps"), 5),
        (("for", "steps"), 4.0),
    ):
        record = valid()
        holder(record, path[:-1])[path[-1]] = wrong  # type: ignore[index]
        assert VALIDATOR.is_valid(record), (path, wrong)
        assert not reader_accepts(record), (path, wrong)
