"""Benchmarks and other tools that run as modules tell how to use them."""

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
MODULES = sorted(
    path.stem
    for path in TOOLS.glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)


def test_there_are_some() -> None:
    assert len([name for name in MODULES if name.startswith("bench_")]) >= 12


@pytest.mark.parametrize("name", MODULES)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"ditc.tools.{name}")
    with pytest.raises(SystemExit) as caught:
        module.main(["--help"])
    assert caught.value.code == 0
    usage, *rest = capsys.readouterr().out.splitlines()
    assert usage.startswith(f"usage: python -m ditc.tools.{name} ")
    assert len(rest) > 3
