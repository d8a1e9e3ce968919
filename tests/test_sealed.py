"""What caches keep: whole, or none of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ditc.export.sealed import bytes_of, seal, tensor_of, unseal

TENSORS = {"b": torch.randn(3, 5, dtype=torch.float64), "a": tensor_of(b"plan\x00")}
RECORD = {"name": "x", "sizes": [1, 2]}


def opened(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    return unseal(path.read_bytes(), str(path), lambda tensors, record: (tensors, record))


def test_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(seal(TENSORS, RECORD))
    found = opened(path)
    assert found is not None
    tensors, record = found
    assert record == RECORD
    assert tensors.keys() == TENSORS.keys()
    assert torch.equal(tensors["b"], TENSORS["b"])
    assert bytes_of(tensors["a"]) == b"plan\x00"
    assert path.read_bytes() == seal(
        dict(reversed(TENSORS.items())), dict(reversed(RECORD.items()))
    )


@pytest.mark.parametrize("at", [-1, -60, 9, 200])
def test_one_byte_more_or_another_is_damage(tmp_path: Path, at: int) -> None:
    raw = bytearray(seal(TENSORS, RECORD))
    raw[at] ^= 1
    path = tmp_path / "kept"
    path.write_bytes(bytes(raw))
    assert opened(path) is None
    path.write_bytes(seal(TENSORS, RECORD)[:-1])
    assert opened(path) is None


def test_another_form_is_none(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(seal(TENSORS, RECORD))
    assert unseal(path.read_bytes(), str(path), lambda _, record: record["absent"]) is None
    path.write_bytes(b"")
    assert opened(path) is None
