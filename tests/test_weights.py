"""The weight store: every tensor once, and where its bytes lie."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ditc.export.lowered import Source
from ditc.export.weights import Entry, merge, write_store
from ditc.passes import Program
from ditc.runtime.errors import LoweringError
from ditc.runtime.manifest import FileInfo
from ditc.runtime.weights import map_tensors

from .samples import sample


def stored(**tensors: torch.Tensor) -> dict[str, Entry]:
    return {name: Entry.of(tensor) for name, tensor in tensors.items()}


def weight_of(program: Program, **source: bool) -> dict[str, Entry]:
    return {"a": Entry.made(Source("time.weight", **source), program)}


def test_merge_keeps_each_name_once_and_sorted() -> None:
    shared = torch.arange(6.0)
    merged = merge([stored(b=shared, a=torch.ones(2)), stored(b=shared, c=torch.zeros(3))])
    assert list(merged) == ["a", "b", "c"]
    assert merged["b"].read() is shared


def test_merge_takes_equal_tensors_of_other_storage() -> None:
    assert list(merge([stored(a=torch.arange(6.0)), stored(a=torch.arange(6.0))])) == ["a"]


def test_merge_refuses_one_name_for_two_tensors() -> None:
    """The very same storage, read with other strides, is another tensor."""
    square = torch.arange(9.0).reshape(3, 3)
    program = sample("small", "cond-first").program
    plain, turned = (weight_of(program, transposed=value) for value in (False, True))
    for pair in (
        [stored(a=square), stored(a=square.t())],
        [plain, turned],
        [plain, stored(a=square)],
    ):
        with pytest.raises(LoweringError, match="weight a differs between buckets"):
            merge(pair)
    assert list(merge([turned, weight_of(program, transposed=True)])) == ["a"]


def test_places_are_those_of_the_bytes(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "whole": whole,
        "transposed": whole.t(),
        "row": whole[1],
        "half": torch.arange(5, dtype=torch.float16),
        "labels": torch.tensor([7, -1]),
    }
    store = write_store(stored(**tensors), tmp_path / "store")
    raw = (tmp_path / "store").read_bytes()
    assert store.file == FileInfo(hashlib.sha256(raw).hexdigest(), len(raw))
    for name, (offset, length) in store.places.items():
        assert raw[offset : offset + length] == tensors[name].contiguous().numpy().tobytes()
    found = map_tensors(tmp_path / "store")
    assert {name: array.shape for name, array in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    with safe_open(tmp_path / "store", "pt") as read:
        assert all(torch.equal(read.get_tensor(name), tensors[name]) for name in tensors)


def test_equal_tensors_make_equal_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        square = torch.arange(4.0).reshape(2, 2).t()
        write_store(stored(a=square, b=torch.ones(1)), tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_store_of_nothing(tmp_path: Path) -> None:
    assert write_store({}, tmp_path / "store").places == {}
    assert map_tensors(tmp_path / "store") == {}
