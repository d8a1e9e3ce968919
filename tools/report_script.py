"""What the report's script is given: the cells, and what lies under the pointer, as JSON."""

import json
from collections.abc import Mapping

from .report_colours import METHODS, STYLES
from .report_data import Facts
from .report_extras import Latency
from .report_lanes import least_squares

__all__ = ["embedded", "script_data"]


def embedded(value: object) -> str:
    """Return JSON that can lie in a script element: nothing in it ends or opens an element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def script_data(facts: Facts, bench: Mapping[str, Latency] | None) -> dict[str, object]:
    """Return what the script needs to say what lies under the pointer."""
    index = {name: number for number, name in enumerate(METHODS)}
    costs, searched = facts.costs, facts.searched
    latency = None
    if bench is not None and facts.buckets is not None:
        timed = [bench[name] for name in facts.buckets]
        scale = least_squares(facts.totals, [entry.median_ms for entry in timed])
        latency = [
            [entry.median_ms, entry.low_ms, entry.high_ms, total * scale]
            for entry, total in zip(timed, facts.totals, strict=True)
        ]
    return {
        "methods": list(METHODS),
        "words": [style.words for style in STYLES.values()],
        "sites": facts.sites,
        "cells": [[index[name] for name in row] for row in facts.methods],
        "totals": facts.totals,
        "buckets": facts.buckets,
        "whole": costs and costs.whole,
        "rests": costs and costs.rests,
        "full": costs and costs.full,
        "spent": costs and costs.spent,
        "losses": searched
        and [
            [[[index[name], loss] for name, loss in cell] for cell in row]
            for row in searched.losses
        ],
        "thresholds": searched and searched.thresholds,
        "target": searched and searched.target,
        "gated": searched and [[index[name] for name in cell] for cell in searched.gated],
        "latency": latency,
    }
