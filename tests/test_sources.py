"""Where stored weights come from: read strictly, as everything in a bundle."""

import json
import shutil
from pathlib import Path

import pytest

from ditc.export.lowered import Source
from ditc.export.sources import Parameter, Sources, read_sources
from ditc.runtime.errors import BundleError
from ditc.tools.cli import main

from .compiled import small_bundle
from .test_agreement import sign

WEIGHT = {"target": "a", "transposed": True, "dtype": None}
SOUND = {"parameters": {"a": {"shape": [2, 3], "dtype": "float32"}}, "weights": {"w": WEIGHT}}


def test_sound() -> None:
    expected = Sources({"a": Parameter((2, 3), "float32")}, {"w": Source("a", True)})
    assert read_sources(json.dumps(SOUND)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "sources.json: expected an object"),
        ("null", "sources.json: expected an object"),
        ("{", "sources.json: is no JSON"),
        ("[" * 100_000, "sources.json: is no JSON"),
        ("{}", "the field 'parameters' is missing"),
        (json.dumps({**SOUND, "parameters": []}), "parameters: expected an object"),
        (json.dumps({**SOUND, "parameters": {"a": {}}}), "a: the field 'shape' is missing"),
        (json.dumps({**SOUND, "parameters": {}}), "w comes from 'a', which is no parameter"),
        (
            json.dumps({**SOUND, "parameters": {"a": {"shape": [-1], "dtype": "float32"}}}),
            r"a\[0\]: is -1, expected 0 to",
        ),
        (
            json.dumps({**SOUND, "weights": {"w": {**WEIGHT, "dtype": "nn"}}}),
            "w: is 'nn', expected one of 'bfloat16'",
        ),
        (
            json.dumps({**SOUND, "weights": {"w": {**WEIGHT, "transposed": 1}}}),
            "w: is 1, expected true or false",
        ),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_sources(text)


def test_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = shutil.copytree(small_bundle(), tmp_path / "bundle")
    (bundle / "sources.json").write_text("{}")
    sign(bundle)
    store = str(bundle / "weights.safetensors")
    assert main(["weights", str(bundle), "--from", store, "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
