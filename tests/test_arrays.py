"""Arrays from files that anybody may have written: read, or refused in one line."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ditc.runtime.errors import DitcError
from ditc.tools.arrays import read_array
from ditc.tools.cli import main

from .compiled import sampling_bundle


def write_npy(path: Path, header: str, content: bytes = b"") -> Path:
    """Write a file of the format's first version with any header."""
    padded = header.encode() + b" " * (63 - (len(header) + 10) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + content)
    return path


def described(shape: str, dtype: str = "<f4") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize("mapped", [False, True])
def test_reads_what_numpy_wrote(tmp_path: Path, mapped: bool) -> None:
    values = np.random.default_rng(2).standard_normal((3, 5)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    assert np.array_equal(read_array(tmp_path / "a.npy", "a", mapped=mapped), values)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    "header",
    [
        described("(1000000000000000,)"),
        described(f"({2**63 - 1}, {2**63 - 1})"),
        described("(-5,)"),
        described("(2.5,)"),
        described("(__import__('os').getpid(),)"),
        described("(4,)", "|O"),
        "{'descr': '<f4', 'fortran_order': ",
        "(" * 3000,
        "[]",
    ],
)
def test_headers_that_lie(tmp_path: Path, header: str, mapped: bool) -> None:
    path = write_npy(tmp_path / "a.npy", header, b"\0" * 16)
    with pytest.raises(DitcError, match=r"--input x: (is no array|says that it is larger)"):
        read_array(path, "--input x", mapped=mapped)


def test_other_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "archive.npy.npz", a=np.ones(2))
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("archive.npy.npz", "empty.npy", "none.npy", "."):
        with pytest.raises(DitcError, match=r"what: is (no|an) "):
            read_array(tmp_path / name, "what")


def test_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_npy(tmp_path / "a.npy", "{'descr': '<f4', 'fortran_order': ")
    out = tmp_path / "latents.npy"
    given = f"class_labels={path}"
    assert main(["run", str(sampling_bundle()), "-o", str(out), "--input", given]) == 1
    assert capsys.readouterr().err.startswith(f"ditc: --input class_labels: {path}: is no array")
    assert not out.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="waits for links that need no privilege")
def test_links_that_go_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    bundle = str(sampling_bundle())
    store = f"{bundle}/weights.safetensors"
    for arguments in (
        ["verify", str(loop)],
        ["weights", str(loop), "--from", store, "-o", str(tmp_path / "out")],
        ["weights", bundle, "--from", store, "-o", str(loop)],
        ["report", str(loop), "-o", str(tmp_path / "report.html")],
        ["report", bundle, "-o", str(loop), "--png", str(tmp_path / "map.png")],
    ):
        code, error = main(arguments), capsys.readouterr().err
        assert (code, error.count("\n")) in ((0, 0), (1, 1)), error
    assert "out" not in {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("place", ["", ".", "/"])
def test_reports_that_have_no_name(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(sampling_bundle()), "-o", place]) == 1
    assert capsys.readouterr().err.endswith(": is a folder, expected the name of a file\n")
