"""The Triton kernel against masked softmax in fp64: on a GPU, or by Triton's interpreter."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from ditc.passes import Window, arrow_attention, attention, tile_attention, windowed_attention
from ditc.passes.pattern import Pattern, Row, Run, pattern_of
from ditc.passes.tile_window import TileWindow
from ditc.passes.window_kernel import Blocks, Shape, attend, blocks_of, run, tables
from ditc.runtime.errors import PassError

from .models import noise
from .reference import masked_attention, visible
from .test_pattern import TILES, mask_of_tiles

pytest.importorskip("triton", reason="waits for Triton: Linux only")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = Blocks(queries=32, keys=16, warps=4, stages=2)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Largest error over largest value: rounding of weights and output in two or four bits' places."""


@pytest.fixture(autouse=True)
def _interpreted_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter keeps bfloat16 as bits, and would multiply the bits."""
    from triton.language import bfloat16, float32
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain = InterpreterBuilder.create_dot

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), float32)

    def create_dot(self: object, a: TensorHandle, b: TensorHandle, *rest: object) -> TensorHandle:
        return plain(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def mask_of(tokens: int, window: Window, text: tuple[int, int]) -> torch.Tensor:
    """Return `[tokens, tokens]`: what each token sees, pair by pair."""
    start = text[1] if text[0] == 0 else 0
    image = tokens - (text[1] - text[0])
    mask = torch.ones(tokens, tokens, dtype=torch.bool)
    inside = visible(image, window.radius, window.block) if image else torch.ones(0, 0)
    mask[start : start + image, start : start + image] = inside
    return mask


def parts(*shape: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    return [noise(*shape, seed=seed + n).to(DEVICE, dtype) for n in range(3)]


def error(
    given: list[torch.Tensor],
    found: torch.Tensor,
    window: Window,
    scale: float,
    text: tuple[int, int] = (0, 0),
) -> float:
    query, key, value = (part.cpu().double() for part in given)
    mask = mask_of(query.shape[-2], window, text)
    expected = masked_attention(query, key, value, scale, mask)
    return float((found.cpu().double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("head_dim", [8, 40, 64, 72, 80, 128])
def test_head_dims(head_dim: int) -> None:
    given = parts(2, 1, 75, head_dim, dtype=torch.float32)
    window = Window(11)
    found = attend(*given, window, 0.3, blocks=SMALL)
    assert error(given, found, window, 0.3) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    ("tokens", "window", "text"),
    [
        (70, Window(5), (0, 19)),
        (70, Window(5), (53, 70)),
        (97, Window(40), (0, 0)),
        (97, Window(0), (96, 97)),
        (61, Window(24, 8), (0, 3)),
        (64, Window(32, 32), (0, 0)),
        (33, Window(99), (0, 32)),
        (20, Window(3), (0, 20)),
    ],
)
def test_windows_and_text(tokens: int, window: Window, text: tuple[int, int]) -> None:
    given = parts(2, 1, tokens, 24, dtype=torch.float32, seed=tokens)
    found = attend(*given, window, 0.5, text, SMALL)
    assert error(given, found, window, 0.5, text) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize(("window", "text"), TILES)
def test_tiles_on_a_grid(window: TileWindow, text: tuple[int, int]) -> None:
    tokens = window.layout.tokens + text[1] - text[0]
    given = parts(2, 1, tokens, 24, dtype=torch.float32, seed=tokens)
    found = attend(*given, window, 0.4, text, SMALL).cpu().double()
    mask = mask_of_tiles(window, text)
    expected = masked_attention(*(part.cpu().double() for part in given), 0.4, mask)
    assert float((found - expected).abs().max()) <= 2e-6
    sizes = (list(window.grid), list(window.tile), list(window.reach))
    by_kernel = tile_attention._by_kernel(*given, *sizes, 0.4, *text)
    assert float((by_kernel.cpu().double() - expected).abs().max()) <= 2e-6


def test_runs_of_any_kind() -> None:
    """Rows of uneven length whose runs lie apart and end within a block of keys."""
    runs = [[(0, 9), (30, 47)], [(5, 6)], [(0, 60)], [(17, 50), (59, 60)]]
    ends = [0, 11, 30, 31, 60]
    rows = tuple(
        Row(start, stop, tuple(Run(a, a, b, b) for a, b in seen))
        for (start, stop), seen in zip(pairwise(ends), runs, strict=True)
    )
    mask = torch.zeros(60, 60, dtype=torch.bool)
    for (start, stop), seen in zip(pairwise(ends), runs, strict=True):
        for a, b in seen:
            mask[start:stop, a:b] = True
    given = parts(2, 1, 60, 24, dtype=torch.float32)
    found = run(*given, Pattern(rows, 0, 0, 0), 0.4, SMALL).cpu().double()
    expected = masked_attention(*(part.cpu().double() for part in given), 0.4, mask)
    assert float((found - expected).abs().max()) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    given = parts(2, 1, 90, 72, dtype=dtype)
    window = Window(16)
    found = attend(*given, window, 72**-0.5, (0, 7))
    assert found.dtype == dtype
    assert 0 < error(given, found, window, 72**-0.5, (0, 7)) <= TOLERANCE[dtype]


def test_any_layout_and_value_dim() -> None:
    """Heads beside channels, as projections leave them; channels apart; no batch axis."""
    projected = noise(2, 45, 2, 3 * 20, seed=1).to(DEVICE).transpose(1, 2)
    query, key, value = projected.split([20, 20, 20], dim=-1)
    window = Window(6)
    found = attend(query, key, value, window, 0.4, blocks=SMALL)
    assert found.is_contiguous()
    assert error([query, key, value], found, window, 0.4) <= TOLERANCE[torch.float32]

    apart = key.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(attend(query, apart, value, window, 0.4, blocks=SMALL), found)
    wide = torch.cat([value, value[..., :7]], dim=-1)
    widened = attend(query[0], key[0], wide[0], window, 0.4, blocks=SMALL)
    assert torch.equal(widened, torch.cat([found[0], found[0][..., :7]], dim=-1))


@pytest.mark.parametrize("blocks", [Blocks(16, 64, 2, 2), Blocks(64, 16, 4, 2), None])
def test_blocks_change_nothing(blocks: Blocks | None) -> None:
    given = parts(1, 2, 77, 16, dtype=torch.float32)
    window = Window(12, 4)
    found = attend(*given, window, 0.4, (70, 77), blocks)
    assert error(given, found, window, 0.4, (70, 77)) <= TOLERANCE[torch.float32]


def test_the_operators_run_it_on_cuda() -> None:
    """The functions registered for CUDA, against the operators as the CPU runs them."""
    given = parts(2, 1, 50, 24, dtype=torch.float32)
    on_cpu = [part.cpu() for part in given]
    by_kernel = attention._by_kernel(*given, 8, 2, 0.3).cpu()
    assert torch.allclose(by_kernel, windowed_attention(*on_cpu, Window(8, 2), 0.3), atol=1e-6)
    text = (0, 9)
    by_kernel = arrow_attention._by_kernel(*given, 8, 2, 0.3, *text).cpu()
    expected = arrow_attention.arrow_attention(*on_cpu, Window(8, 2), text, 0.3)
    assert torch.allclose(by_kernel, expected, atol=1e-6)


def test_fp64_goes_another_way() -> None:
    given = [part.double() for part in parts(1, 1, 20, 8, dtype=torch.float32)]
    found = attention._by_kernel(*given, 3, 1, 0.3)
    assert error(given, found, Window(3), 0.3) <= 1e-14


def test_blocks_follow_tiles_and_registers() -> None:
    half = Shape(4096, 72, 72, torch.float16)
    assert blocks_of(half, Window(512)) == Blocks(128, 64, 8, 3)
    assert blocks_of(half, Window(512, 64)) == Blocks(64, 64, 4, 3)
    assert blocks_of(half, Window(512, 32)).queries == 128
    assert blocks_of(half, TileWindow((64, 64), (8, 8), (1, 1))) == Blocks(64, 64, 4, 3)
    assert blocks_of(half, TileWindow((64, 64), (2, 2), (1, 1))) == Blocks(16, 64, 1, 3)
    assert blocks_of(half, TileWindow((64, 64), (12, 16), (1, 1))).queries == 64
    wide = Shape(4096, 128, 128, torch.float32)
    assert blocks_of(wide, Window(512)) == Blocks(32, 32, 4, 2)


def test_tables_are_rows_and_runs() -> None:
    rows, runs = tables(pattern_of(Window(4), 20, (0, 3), 10))
    assert rows.tolist() == [[0, 3, 0, 1], [3, 13, 1, 3], [13, 20, 3, 5]]
    words = [0, 0, 3, 3]
    assert runs.tolist() == [[0, 0, 20, 20], words, [3, 3, 3, 17], words, [9, 15, 18, 20]]


def test_nothing_to_compute() -> None:
    empty = torch.empty(0, 2, 10, 8)
    assert attend(empty, empty, empty, Window(3), 1.0).shape == (0, 2, 10, 8)


def test_inputs_that_cannot_be() -> None:
    part = noise(1, 1, 10, 8)
    window = Window(3)
    with pytest.raises(PassError, match=r"float64.*takes float16, bfloat16 or float32"):
        attend(part.double(), part.double(), part.double(), window, 1.0)
    with pytest.raises(PassError, match="one for all three"):
        attend(part, part.half(), part, window, 1.0)
    with pytest.raises(PassError, match="as many keys and values as queries"):
        attend(part, part[..., :9, :], part, window, 1.0)
    with pytest.raises(PassError, match="text 3 to 5 isn't at one end of 10 tokens"):
        attend(part, part, part, window, 1.0, (3, 5))
