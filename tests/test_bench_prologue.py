"""The prologue of PixArt-Σ at 1024 x 1024: what leaves the steps is what the arithmetic says."""

from ditc.tools.bench_prologue import arithmetic, pixart_sigma

LAYERS, WIDTH, TEXT, TEXT_WIDTH = 2, 1152, 300, 4096


def test_pixart_sigma() -> None:
    found = arithmetic(pixart_sigma(LAYERS), steps=20)
    square, rows = WIDTH * WIDTH, 2 * TEXT
    captions = rows * (TEXT_WIDTH * WIDTH + square)
    keys_and_values = LAYERS * 2 * rows * square
    timestep = 2 * (256 * WIDTH + square + 6 * square)
    spared = captions + keys_and_values + timestep
    before = found["multiply_adds_a_step"]
    assert isinstance(before, int)
    assert found["multiply_adds_a_step_with_prologue"] == before - spared
    parameters = (
        (TEXT_WIDTH + WIDTH + 2) * WIDTH  # captions
        + LAYERS * 2 * (square + WIDTH)
        + (256 + WIDTH + 2) * WIDTH  # timestep
        + 6 * (square + WIDTH)
    )
    weights = found["weight_bytes"]
    assert isinstance(weights, int)
    assert found["weight_bytes_of_buckets_with_prologue"] == weights - 4 * parameters
    kept = found["kept_bytes"]
    assert isinstance(kept, int)
    # keys, values and mask of the text; of every step 7 x 1152 for each half
    assert kept == 4 * (LAYERS * 2 * rows * WIDTH + rows + 20 * 2 * 7 * WIDTH)
