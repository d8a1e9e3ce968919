"""The arrows between the folders, read off every file's imports."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("passes", "export", "runtime", "tools")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))
SHARED = "ditc.runtime.errors"
MAX_LINES = 320
TORCH = ("torch", "diffusers", "transformers", "torchvision", "torch_tensorrt")


def imported(path: Path) -> set[str]:
    """Return the modules a file imports, wherever it does, relative ones in full."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = f"ditc.{path.parent.name}" if node.level else ""
            base = ".".join(part for part in (package, node.module) if part)
            names.update({base} | {f"{base}.{alias.name}" for alias in node.names})
    return names


def folders_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("ditc.")}


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def of(*folders: str) -> list[Path]:
    return [path for path in FILES if path.parent.name in folders]


@pytest.mark.parametrize("path", of("passes"), ids=named)
def test_passes_know_no_sibling_but_the_errors(path: Path) -> None:
    names = {name for name in imported(path) if name.startswith("ditc.runtime")}
    assert folders_of(imported(path)) <= {"passes", "runtime"}
    assert all(name == SHARED or name.startswith(f"{SHARED}.") for name in names)


@pytest.mark.parametrize("path", of("runtime"), ids=named)
def test_runtime_knows_no_sibling_and_no_torch(path: Path) -> None:
    names = imported(path)
    assert folders_of(names) <= {"runtime"}
    if path.name == "diffusers.py":
        return
    assert not {name.split(".")[0] for name in names}.intersection(TORCH)
    assert "ditc.runtime.diffusers" not in names


@pytest.mark.parametrize("path", of("export"), ids=named)
def test_export_knows_passes_and_runtime(path: Path) -> None:
    assert folders_of(imported(path)) <= {"export", "passes", "runtime"}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_imports_are_relative_inside_a_folder(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    absolute = {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level and node.module
    }
    own = f"ditc.{path.parent.name}"
    assert not {name for name in absolute if name == own or name.startswith(f"{own}.")}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("folder", ["passes", "export", "runtime"])
def test_public_names_exist_and_are_sorted(folder: str) -> None:
    package = importlib.import_module(f"ditc.{folder}")
    assert package.__all__ == sorted(package.__all__, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(package, name) for name in package.__all__)


def test_names_that_need_torch_are_found_where_checkers_find_them() -> None:
    package = importlib.import_module("ditc.passes")
    tree = ast.parse((ROOT / "passes" / "__init__.py").read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == package.WITH_TORCH
    assert set(package.__all__) <= set(dir(package))
    for name, module in seen.items():
        home = importlib.import_module(f"ditc.passes.{module}")
        assert getattr(package, name) is getattr(home, name)
    with pytest.raises(AttributeError, match=r"'ditc\.passes' has no attribute 'captured'"):
        package.captured  # noqa: B018


@pytest.mark.parametrize("path", of("passes"), ids=named)
def test_modules_state_public_names_that_exist(path: Path) -> None:
    name = "ditc.passes" if path.stem == "__init__" else f"ditc.passes.{path.stem}"
    module = importlib.import_module(name)
    assert all(hasattr(module, public) for public in module.__all__)


def test_no_function_shadows_its_module() -> None:
    package = importlib.import_module("ditc.passes")
    files = {path.stem for path in of("passes")}
    shadowed = {
        name
        for name in files & set(package.__all__)
        if getattr(package, name).__module__ == f"ditc.passes.{name}"
    }
    assert shadowed == set()


def test_relative_and_absolute_imports_are_told_apart(tmp_path: Path) -> None:
    """A near-miss: an import inside a function, and one by name from the package."""
    path = tmp_path / "runtime" / "sample.py"
    path.parent.mkdir()
    path.write_text(
        "def f():\n    import torch.nn\n    from ditc import passes\n    from . import x\n"
    )
    assert imported(path) >= {"torch.nn", "ditc.passes", "ditc.runtime.x"}
    assert folders_of(imported(path)) == {"passes", "runtime"}
