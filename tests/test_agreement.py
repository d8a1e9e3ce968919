"""A manifest that was changed and signed anew is found out by the plan beside it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ditc.runtime import Bundle
from ditc.runtime.agreement import check_plan
from ditc.runtime.errors import BundleError
from ditc.runtime.fields import digest_of
from ditc.runtime.manifest import Manifest
from ditc.tools.cli import main
from ditc.tools.earlier import earlier_of

from .bundles import info_of, write_bundle
from .compiled import sampling_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return shutil.copytree(sampling_bundle(), tmp_path / "bundle")


def sign(root: Path, **changes: Any) -> None:
    """Change a manifest's fields, and make its digests those of what is there."""
    record = json.loads((root / "manifest.json").read_text()) | changes
    record["files"] = {path: info_of(root / path).to_json() for path in record["files"]}
    record.pop("digest")
    (root / "manifest.json").write_text(json.dumps({**record, "digest": digest_of(record)}))


def alter_plan(root: Path, **changes: Any) -> None:
    plan = json.loads((root / "plan.json").read_text())
    plan["for"] |= changes
    (root / "plan.json").write_text(json.dumps(plan))
    sign(root)


def test_what_was_compiled_agrees(bundle: Path) -> None:
    check_plan(bundle, Manifest.from_json((bundle / "manifest.json").read_text()))


@pytest.mark.parametrize("layout", ["uncond-first", None])
def test_another_layout(
    bundle: Path, layout: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    sign(bundle, cfg=layout)
    message = f"plan.json: is for cfg 'cond-first', the manifest has {layout!r}: one of them was"
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle)
    for command in (["verify"], ["report", "-o", str(bundle.parent / "report.html")]):
        assert main([command[0], str(bundle), *command[1:]]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("steps", [2, True, None, "3"])
def test_a_plan_of_other_steps(bundle: Path, steps: object) -> None:
    alter_plan(bundle, steps=steps)
    with pytest.raises(BundleError, match=f"is for steps {steps!r}, the manifest has 3"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "plan.json: expected an object"), ("{", "no JSON"), ("{}", "for: expected an object")],
)
def test_what_is_no_plan(bundle: Path, text: str, message: str) -> None:
    (bundle / "plan.json").write_text(text)
    sign(bundle)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle)


def test_a_bundle_without_a_plan_runs(tmp_path: Path) -> None:
    assert Bundle.open(write_bundle(tmp_path / "bundle"), threads=1).generate().size


def test_nearing_a_bundle_whose_plan_is_another(bundle: Path, tmp_path: Path) -> None:
    alter_plan(bundle, cfg="separate")
    with pytest.raises(BundleError, match="is for cfg 'separate', the manifest has 'cond-first'"):
        earlier_of(bundle, None)
    plan = json.loads((sampling_bundle() / "plan.json").read_text())
    (site,) = plan["windows"]
    text = json.dumps(plan).replace(f'"{site}"', '"another"')
    (bundle / "plan.json").write_text(text)
    sign(bundle)
    with pytest.raises(BundleError, match="speaks of other sites than its graphs"):
        earlier_of(bundle, None)
    with pytest.raises(BundleError, match=r"holds no plan.json, expected the plan that it runs"):
        earlier_of(write_bundle(tmp_path / "bare"), None)
