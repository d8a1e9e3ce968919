"""Commands in README and docs exist, with the options that they are given."""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from ditc.tools import cli

ROOT = Path(__file__).parent.parent
MODEL_CARD = ROOT / "tools" / "demo_model" / "README.md"
DOCUMENTS = [ROOT / "README.md", MODEL_CARD, *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def lines(document: Path) -> Iterator[str]:
    """Yield the lines of a document's shell blocks, those that go on as one, without comments."""
    for language, block in FENCED.findall(document.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines() if language in ("", "sh") else ():
            yield line.partition("  #")[0].strip()


def named(document: Path) -> str:
    return str(document.relative_to(ROOT))


def options() -> set[str]:
    """Return every option of the command and of the tools, as their files state them."""
    found = set()
    for path in (ROOT / "tools").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        found.update(re.findall(r'"(--[a-z][a-z-]*)"', text))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_commands_are_parsed(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in lines(document):
        words = shlex.split(line)
        if words[:1] != ["ditc"]:
            continue
        try:
            cli._parser().parse_args(words[1:])
        except (SystemExit, argparse.ArgumentError):
            pytest.fail(f"{line}: {capsys.readouterr().err}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_modules_and_options_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for module in re.findall(r"python -m\s+([a-z_.]+)", text):
        assert find_spec(module.rstrip(".")) is not None, module
    known = options()
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text):
        assert option in known, option


def test_every_option_of_the_command_is_told() -> None:
    text = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    told = set(re.findall(r"--[a-z][a-z-]*", text))
    (commands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        assert f"ditc {name}" in text
        for action in parser._actions:
            flags = {flag for flag in action.option_strings if flag.startswith("--")}
            assert not flags or flags & {*told, "--help", "--out"}, f"{name} {flags}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_python_is_parsed_and_its_imports_exist(document: Path) -> None:
    for language, block in FENCED.findall(document.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ditc."):
                module = import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} {alias.name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_no_placeholder_and_links_lead_to_files(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not re.search(r"@[A-Z]+@|<!--", text)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (document.parent / link).exists(), link


def test_a_line_that_goes_on_is_one(tmp_path: Path) -> None:
    """And near-misses: what isn't fenced, or is Python."""
    path = tmp_path / "sample.md"
    path.write_text("ditc no\n```sh\nditc a \\\n    --b  # why\n```\n```python\nditc\n```\n")
    assert [" ".join(line.split()) for line in lines(path)] == ["ditc a --b"]
