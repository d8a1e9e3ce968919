"""The Triton kernel of window attention: online softmax in fp32 over the keys a window shows.

One program computes a row of a pattern: some queries of one head, and the few runs of keys that
they see. The inner keys of a run are seen by every query and need no mask; those at its edges are
told by the band. Heads are split in two powers of two (72 into 64 and 16), so that little is
padded.
"""

import triton
import triton.language as tl

__all__ = ["window_kernel"]


@triton.jit
def _load(
    base,
    places,
    stride,
    limit,
    START: tl.constexpr,
    SIZE: tl.constexpr,
    DIM: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Return `[places, SIZE]`, channels `START` on; zero beyond the last channel or the limit."""
    channels = START + tl.arange(0, SIZE)
    pointers = base + places[:, None] * stride + channels[None, :]
    if START + SIZE > DIM:
        mask = (channels < DIM)[None, :]
        if MASKED:
            mask = mask & (places < limit)[:, None]
        tile = tl.load(pointers, mask=mask, other=0.0)
    elif MASKED:
        tile = tl.load(pointers, mask=(places < limit)[:, None], other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def _store(
    base,
    places,
    stride,
    limit,
    tile,
    START: tl.constexpr,
    SIZE: tl.constexpr,
    DIM: tl.constexpr,
):
    channels = START + tl.arange(0, SIZE)
    pointers = base + places[:, None] * stride + channels[None, :]
    mask = (places < limit)[:, None] & (channels < DIM)[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _attend(
    query_low,
    query_high,
    output_low,
    output_high,
    peak,
    total,
    tiles,
    key,
    key_stride,
    value,
    value_stride,
    begin,
    count,
    resumed,
    skipped,
    inner,
    inner_end,
    end,
    origin,
    SCALE: tl.constexpr,
    TILE: tl.constexpr,
    REACH: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_LOW: tl.constexpr,
    VALUE_HIGH: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Go on with the softmax over `count` blocks of keys from `begin`.

    From block `resumed` on, `skipped` keys are left out. Scores are in powers of two.
    """
    for number in range(0, count):
        start = begin + number * KEYS
        if MASKED:
            start += tl.where(number >= resumed, skipped, 0)
        places = start + tl.arange(0, KEYS)
        key_low = _load(key, places, key_stride, end, 0, LOW, DIM, MASKED)
        scores = tl.dot(query_low, tl.trans(key_low), input_precision=PRECISION)
        if HIGH > 0:
            key_high = _load(key, places, key_stride, end, LOW, HIGH, DIM, MASKED)
            scores = tl.dot(query_high, tl.trans(key_high), scores, input_precision=PRECISION)
        scores = scores * (SCALE * 1.4426950408889634)
        if MASKED:
            seen = ((places >= inner) & (places < inner_end))[None, :]
            if TILE > 0:
                apart = tiles[:, None] - ((places - origin) // TILE)[None, :]
                near = (apart <= REACH) & (apart >= -REACH)
                seen = seen | (near & (places < end)[None, :])
            scores = tl.where(seen, scores, float("-inf"))
        highest = tl.maximum(peak, tl.max(scores, 1))
        finite = highest
        if MASKED:  # a query may see none of these keys, nor have seen any before
            finite = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(scores - finite[:, None])
        kept = tl.exp2(peak - finite)
        peak = highest
        total = total * kept + tl.sum(weights, 1)
        value_low = _load(value, places, value_stride, end, 0, VALUE_LOW, VALUE_DIM, MASKED)
        weights = weights.to(value_low.dtype)
        output_low = tl.dot(
            weights, value_low, output_low * kept[:, None], input_precision=PRECISION
        )
        if VALUE_HIGH > 0:
            value_high = _load(
                value, places, value_stride, end, VALUE_LOW, VALUE_HIGH, VALUE_DIM, MASKED
            )
            output_high = tl.dot(
                weights, value_high, output_high * kept[:, None], input_precision=PRECISION
            )
    return output_low, output_high, peak, total


@triton.jit
def window_kernel(
    query,
    key,
    value,
    rows,
    runs,
    output,
    query_batch,
    query_head,
    query_token,
    key_batch,
    key_head,
    key_token,
    value_batch,
    value_head,
    value_token,
    heads,
    tokens,
    origin,
    SCALE: tl.constexpr,
    TILE: tl.constexpr,
    REACH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_LOW: tl.constexpr,
    VALUE_HIGH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write one row of the pattern; the grid is (rows, batch x heads).

    Strides are in elements; channels lie side by side; the output is contiguous. A row holds its
    first query and their end, its first run and their end; a run its first key, the first and the
    end of those that all queries see, and the end. Other keys are seen by queries no more than
    `REACH` tiles away, counted from `origin`; by none where `TILE` is 0.
    """
    sample = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    query += sample * query_batch + head * query_head
    key += sample * key_batch + head * key_head
    value += sample * value_batch + head * value_head
    output += tl.program_id(1).to(tl.int64) * tokens * VALUE_DIM

    row = rows + tl.program_id(0) * 4
    stop = tl.load(row + 1)
    places = tl.load(row) + tl.arange(0, QUERIES)
    queries = tl.minimum(places, stop - 1)  # beyond the end the last one is repeated
    tiles = queries
    if TILE > 0:
        tiles = (queries - origin) // TILE
    query_low = _load(query, queries, query_token, 0, 0, LOW, DIM, False)
    query_high = query_low
    if HIGH > 0:
        query_high = _load(query, queries, query_token, 0, LOW, HIGH, DIM, False)
    output_low = tl.zeros([QUERIES, VALUE_LOW], tl.float32)
    output_high = tl.zeros([QUERIES, VALUE_HIGH if VALUE_HIGH > 0 else 16], tl.float32)
    peak = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)

    for number in range(tl.load(row + 2), tl.load(row + 3)):
        run = runs + number * 4
        begin = tl.load(run)
        inner = tl.load(run + 1)
        inner_end = tl.load(run + 2)
        end = tl.load(run + 3)
        edge = tl.cdiv(inner - begin, KEYS)
        whole = tl.maximum(inner_end - begin - edge * KEYS, 0) // KEYS
        rest = tl.cdiv(end - begin, KEYS) - whole
        # fmt: off
        output_low, output_high, peak, total = _attend(
            query_low, query_high, output_low, output_high, peak, total, tiles,
            key, key_token, value, value_token, begin + edge * KEYS, whole, 0, 0,
            inner, inner_end, end, origin, SCALE, TILE, REACH, KEYS,
            DIM, LOW, HIGH, VALUE_DIM, VALUE_LOW, VALUE_HIGH, PRECISION, False,
        )
        output_low, output_high, peak, total = _attend(
            query_low, query_high, output_low, output_high, peak, total, tiles,
            key, key_token, value, value_token, begin, rest, edge, whole * KEYS,
            inner, inner_end, end, origin, SCALE, TILE, REACH, KEYS,
            DIM, LOW, HIGH, VALUE_DIM, VALUE_LOW, VALUE_HIGH, PRECISION, True,
        )
        # fmt: on

    output_low = output_low / total[:, None]
    _store(output, places, VALUE_DIM, stop, output_low, 0, VALUE_LOW, VALUE_DIM)
    if VALUE_HIGH > 0:
        output_high = output_high / total[:, None]
        _store(output, places, VALUE_DIM, stop, output_high, VALUE_LOW, VALUE_HIGH, VALUE_DIM)
