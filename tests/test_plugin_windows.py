"""Windows by TensorRT's plugin: the node says what the kernel has to compute."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ditc.export import compile as compile_bundle
from ditc.export.library import Library, find_window_kernel
from ditc.export.onnx import lower
from ditc.export.plugin_windows import DOMAIN
from ditc.export.weight_inputs import with_weight_inputs
from ditc.export.write_out_attention import write_out_attention
from ditc.passes import Bucket, TileWindow, Window, schedule
from ditc.passes.laying_out import with_tile_layout
from ditc.runtime.errors import LoweringError
from ditc.runtime.targets import parse_target

from . import engines
from .compiled import planned, small_schedule
from .samples import sample

CALLS: list[dict[str, object]] = []


class window_attention(OpRun):  # noqa: N801 (the node's type)
    """The plugin's node, computed from its tables alone: rows of queries, runs of keys."""

    op_domain = DOMAIN

    def _run(self, query, key, value, rows, runs, **given):
        CALLS.append(given)
        tokens = query.shape[2]
        seen = np.zeros((tokens, tokens), bool)
        tile, reach, origin = given["tile"], given["reach"], given["origin"]
        for start, stop, first, last in rows:
            for begin, inner, inner_end, end in runs[first:last]:
                for token in range(start, stop):
                    keys = np.arange(begin, end)
                    near = (inner <= keys) & (keys < inner_end)
                    if tile:
                        apart = np.abs((token - origin) // tile - (keys - origin) // tile)
                        near |= apart <= reach
                    seen[token, keys] = near
        scores = np.where(seen, given["scale"] * query @ key.swapaxes(2, 3), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return ((weights / weights.sum(-1, keepdims=True) @ value).astype(query.dtype),)


def computed(bucket: Bucket) -> float:
    """Return the largest error of a bucket's graph, run by ONNX's reference, over its values."""
    lowered = lower(bucket, kernel=89)
    model = onnx.ModelProto.FromString(with_weight_inputs(lowered.graph))
    calls = [node for node in model.graph.node if node.domain == DOMAIN]
    windowed = sum(str(method).startswith("wa") for method in bucket.methods.values())
    assert len(calls) == windowed + len(bucket.keep_residuals)
    draw = torch.Generator().manual_seed(3)
    given = []
    for node in bucket.graph_module.graph.find_nodes(op="placeholder"):
        value = node.meta["val"]
        drawn = torch.randn(value.shape, generator=draw)
        whole = torch.randint(0, 9, value.shape, generator=draw)
        given.append((drawn if value.is_floating_point() else whole).to(value.dtype))
    feeds = {name: value.numpy() for name, value in zip(lowered.inputs, given, strict=True)}
    program = bucket.program
    for name, source in lowered.weights.items():
        feeds[name] = source.tensor(program).contiguous().numpy()
    feeds |= {name: value.numpy() for name, value in lowered.constants.items()}
    found = ReferenceEvaluator(model, new_ops=[window_attention]).run(None, feeds)
    with torch.no_grad():
        expected = bucket.graph_module(*given)
    return max(
        float(np.abs(one - other.numpy()).max() / np.abs(other.numpy()).max())
        for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("cfg", "window"), [("cond-first", Window(3)), ("uncond-first", Window(8, 4))], ids=str
)
def test_bands_and_blocks(cfg: str, window: Window) -> None:
    program = sample("small", cfg).program
    sched = schedule(program, planned(program, "full", "wa-rs+asc", window=window))
    CALLS.clear()
    assert max(computed(bucket) for bucket in sched.buckets) < 1e-5  # keeps a residual, reads it
    assert {call["capability"] for call in CALLS} == {89}
    assert all(call["plugin_namespace"] == "ditc" and call["aot"] == 1 for call in CALLS)


def test_heads_merged_into_the_batch_and_tiles() -> None:
    program = sample("merged-heads", None).program
    sched = schedule(program, planned(program, "full", "wa-rs", window=Window(4)))
    assert computed(sched.buckets[1]) < 1e-5
    program = with_tile_layout(sample("dit", "cond-first").program, (2, 3))
    grid = next(site.tiles.grid for site in program.sites if site.tiles)
    window = TileWindow(grid, (2, 3), (1, 1))
    sched = schedule(program, planned(program, "full", "wa-rs", window=window))
    assert computed(sched.buckets[1]) < 1e-5


def test_attention_beside_it_can_still_be_written_out() -> None:
    bucket = engines.planned_schedule(torch.float16, 1).buckets[0]
    graph = with_weight_inputs(lower(bucket, kernel=89).graph)
    model = onnx.ModelProto.FromString(write_out_attention(graph))
    kinds = [node.op_type for node in model.graph.node]
    assert "Attention" not in kinds
    assert kinds.count("window_attention") == 1  # of the residual


def refused(target: str, library: Library | None) -> str:
    with pytest.raises(LoweringError) as caught:
        find_window_kernel(parse_target(target), library)
    return str(caught.value)


def test_targets_that_take_no_plugin(tmp_path: Path) -> None:
    with pytest.raises(LoweringError) as caught:
        compile_bundle(small_schedule(), tmp_path / "b", window_kernel=True)
    told = (
        "the window kernel is a plugin of TensorRT: compile with target 'tensorrt', or without "
        "window_kernel for windows as blocks"
    )
    assert str(caught.value) == f"target onnx: {told}"
    assert not list(tmp_path.iterdir())
    library = Library("tensorrt", "10.16", ("sm90",), torch="torch-tensorrt 2.13.0")
    assert refused("torch-tensorrt", library) == f"target torch-tensorrt: {told}"


def test_tensorrt_rtx_takes_no_plugin() -> None:
    pytest.importorskip("tensorrt_rtx", reason="waits for tensorrt-rtx")
    message = refused("tensorrt-rtx:sm89", Library("tensorrt_rtx", "1.7", ("sm89",)))
    assert message.startswith(
        "target tensorrt-rtx:sm89: tensorrt_rtx takes no plugins from Python here"
    )
    assert message.endswith("or compile without window_kernel for windows as blocks")
