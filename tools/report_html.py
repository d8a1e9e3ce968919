"""Put the report together: one HTML file with everything in it, and no way to the network.

All text is escaped, data lies in a script element that isn't run, and a content security policy
allows one script, by its hash, and no connection.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from .report_colours import css_variables
from .report_curve import curve_chart
from .report_data import Facts
from .report_extras import Demo, Latency
from .report_images import comparison_html
from .report_lanes import heat_map, lanes, latency_lane, least_squares, legend, work_lane
from .report_pareto import pareto_chart, which
from .report_plan import Absent
from .report_points import Point
from .report_script import embedded, script_data
from .report_words import byte_size, milliseconds, quantity, site_pattern

__all__ = ["Extras", "page"]

NO_BREAK = "\u00a0"
ASSETS = Path(__file__).parent / "report_assets"


@dataclass(frozen=True)
class Extras:
    """What a report shows besides plan or bundle, each None if it wasn't given."""

    bench: Mapping[str, Latency] | None = None
    points: Sequence[Point] | None = None
    demo: Demo | None = None


def page(facts: Facts, extras: Extras, ditc: str) -> str:
    """Return the report.

    Args:
        facts: of the plan or bundle.
        extras: what else there is.
        ditc: version that writes the report.
    """
    script = (ASSETS / "report.js").read_text(encoding="utf-8")
    style = css_variables() + (ASSETS / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    name = facts.model.rpartition(".")[2]
    sections = "".join(
        (
            _plan_section(facts, extras.bench),
            _curve_section(facts),
            _pareto_section(facts, extras.points),
            _demo_sections(extras.demo),
            _absent_section((*facts.absent, *_not_given(facts, extras))),
            _table(facts),
        )
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="ditc {escape(ditc)}">
<title>{escape(name)} · {escape(facts.source)} · ditc report</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
{_header(facts, name)}
{sections}
<footer>Written by ditc {escape(ditc)}. One multiply-add is two FLOPs.</footer>
</main>
<div id="tip" role="status" aria-live="polite" hidden></div>
<script type="application/json" id="data">{embedded(script_data(facts, extras.bench))}</script>
<script>{script}</script>
</body>
</html>
"""


def _header(facts: Facts, name: str) -> str:
    notes = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>"
        for label, value in facts.notes
    )
    kind = "plan" if facts.memory is None else "bundle"
    return f"""<header>
<div class="top"><p class="eyebrow">ditc report · {kind} <b>{escape(facts.source)}</b></p>
<button type="button" id="theme" hidden>Dark</button></div>
<h1 title="{escape(facts.model)}">{escape(name)}</h1>
<dl class="notes">{notes}</dl>
<ul class="key">{"".join(_key_numbers(facts))}</ul>
</header>"""


def _key_numbers(facts: Facts) -> list[str]:
    tiles = []
    if facts.costs is not None:
        left, model = facts.costs.attention_left, facts.costs.model_left
        tiles.append(_tile(f"{left:.1%}", "of attention left", f"{1 - left:.1%} removed"))
        promised = f"promises {1 / model:.2f}× at most" if model else "nothing is left"
        tiles.append(_tile(f"{model:.1%}", "of the model left", promised))
    mean = quantity(sum(facts.totals) / facts.steps)
    of = f", for {facts.samples} samples" if facts.samples > 1 else ""
    tiles.append(_tile(str(facts.steps), "steps", f"{mean} multiply-adds each{of}"))
    if facts.buckets is None or facts.memory is None:
        tiles.append(_tile(str(len(facts.sites)), "attention sites", f"{_cells(facts)} cells"))
        return tiles
    slots = f"{facts.memory.slots} slots, {byte_size(facts.memory.slot_bytes)}"
    parts = facts.memory.bytes_by_part
    each = (f"{part} {byte_size(size)}".replace(" ", NO_BREAK) for part, size in parts.items())
    inside = ", ".join(each)
    tiles.append(_tile(str(len(set(facts.buckets))), "buckets", slots))
    tiles.append(_tile(byte_size(sum(parts.values())), "on disk", inside))
    return tiles


def _tile(value: str, label: str, note: str) -> str:
    return (
        f"<li><b>{escape(value)}</b><span>{escape(label)}</span><small>{escape(note)}</small></li>"
    )


def _cells(facts: Facts) -> int:
    return facts.steps * len(facts.sites)


def _plan_section(facts: Facts, bench: Mapping[str, Latency] | None) -> str:
    pattern = site_pattern(facts.sites)
    names = f" Rows are sites <code>{escape(pattern)}</code>." if pattern else " Rows are sites."
    stacked = '<i class="swatch rest"></i>the rest of the model, and attention by method'
    work = f"{stacked}; the line is an uncompressed step" if facts.costs else "Of a whole step"
    parts = [
        _head("The plan", f"Columns are steps.{names} Point at a cell for {_told(facts)}."),
        legend(facts),
        lanes(
            facts,
            heat_map(facts),
            f'<div class="lane-head"><h3>Multiply-adds of a step</h3><p>{work}.</p></div>',
            work_lane(facts),
            _latency(facts, bench),
        ),
    ]
    return f'<section id="plan">{"".join(parts)}</section>'


def _told(facts: Facts) -> str:
    """Return what a cell tells when it is pointed at."""
    told = "what it costs" if facts.costs else "its method"
    return f"{told} and the loss of every candidate" if facts.searched else told


def _latency(facts: Facts, bench: Mapping[str, Latency] | None) -> str:
    if bench is None or facts.buckets is None:
        return ""
    measured = [bench[name].median_ms for name in facts.buckets]
    scale = least_squares(facts.totals, measured)
    off = sum(
        abs(found - scale * total) for found, total in zip(measured, facts.totals, strict=True)
    )
    share = off / sum(measured) if sum(measured) else 0.0
    words = (
        '<i class="swatch bar"></i>median, with quartiles; <i class="swatch predicted"></i>'
        f"predicted from multiply-adds at {milliseconds(scale * 1e9)} a G, the best fit through "
        f"zero: {share:.0%} off on average. All steps: {milliseconds(sum(measured))}."
    )
    head = f'<div class="lane-head"><h3>Latency of a step</h3><p>{words}</p></div>'
    return head + latency_lane(facts, bench, scale)


def _curve_section(facts: Facts) -> str:
    curve = facts.curve
    if curve is None or curve.buckets < 2:
        return ""
    here = None if facts.buckets is None else len(set(facts.buckets))
    which = "knee" if here is None else "bundle's own"
    at = curve.knee if here is None else here
    words = (
        f"Steps that share a graph use the milder of their methods. The ring is the {which}: "
        f"{at} of {curve.buckets} keep {curve.kept(at):.1%} of what the plan saves."
    )
    chart = curve_chart(curve, here)
    head = _head("Buckets against cost", words)
    return f'<section id="buckets">{head}<div class="scroll">{chart}</div></section>'


def _pareto_section(facts: Facts, points: Sequence[Point] | None) -> str:
    predicted = points is None
    points = facts.points if points is None else points
    if points is None:
        return ""
    threshold = facts.searched.threshold if facts.searched else None
    words = "Each dot is a plan; the line joins those that no other one beats in both."
    here = which(points, threshold, None if facts.costs is None else facts.costs.model_left)
    merged = any(label == "steps merged" for label, _ in facts.notes)
    whose = "the plan before its steps were merged" if merged else "this plan"
    if predicted:
        words += " Costs are predicted; losses are those of final latents, at the same seed."
    if here is not None:
        words += f" The ring is {whose}."
    chart = pareto_chart(points, here, whose)
    head = _head("Cost against loss", words)
    return f'<section id="pareto">{head}<div class="scroll">{chart}</div></section>'


def _demo_sections(demo: Demo | None) -> str:
    if demo is None:
        return ""
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(plain)}</td><td>{escape(small)}</td>"
        "</tr>"
        for name, plain, small in demo.figures
    )
    quality = (
        f'<section id="quality">{_head("Quality and speed", "As measured by the demo.")}'
        '<div class="scroll"><table class="figures"><thead><tr><td></td><th scope=col>uncompressed'
        f"</th><th scope=col>compressed</th></tr></thead><tbody>{rows}</tbody></table></div>"
        "</section>"
    )
    if demo.before is None:
        return quality
    head = _head("Before and after", "The same seed, without and with the plan. Drag the line.")
    return f'{quality}<section id="images">{head}{comparison_html(demo)}</section>'


def _not_given(facts: Facts, extras: Extras) -> list[Absent]:
    found = []
    if extras.bench is None:
        how = "" if facts.buckets else "compile the plan, then "
        why = f"no --bench given: {how}ditc bench BUNDLE --json > bench.json"
        found.append(Absent("Measured latency", why))
    if extras.points is None and facts.points is None:
        found.append(Absent("Cost against loss", "no --pareto given: a JSON list of plans"))
    if extras.demo is not None:
        found.extend(extras.demo.absent)
    if extras.demo is None:
        found.append(Absent("Quality and images", "no --demo given: the folder of ditc demo"))
    elif extras.demo.before is None:
        found.append(Absent("Images", "the demo's folder holds no images-uncompressed.npy"))
    return found


def _absent_section(absent: Sequence[Absent]) -> str:
    if not absent:
        return ""
    rows = "".join(
        f"<div><dt>{escape(entry.what)}</dt><dd>{escape(entry.why)}</dd></div>" for entry in absent
    )
    return f'<section id="absent">{_head("Not in this report", "")}<dl>{rows}</dl></section>'


def _table(facts: Facts) -> str:
    steps = "".join(f"<th scope=col>{step}</th>" for step in range(facts.steps))
    rows = "".join(
        f"<tr><th scope=row>{escape(site)}</th>"
        + "".join(f"<td>{escape(step[number])}</td>" for step in facts.methods)
        + "</tr>"
        for number, site in enumerate(facts.sites)
    )
    return (
        f"<details><summary>The plan as a table</summary><div class=scroll><table class=cells>"
        f"<thead><tr><th scope=col>site</th>{steps}</tr></thead><tbody>{rows}</tbody></table></div>"
        "</details>"
    )


def _head(title: str, words: str) -> str:
    note = f"<p>{words}</p>" if words else ""
    return f'<div class="head"><h2>{title}</h2>{note}</div>'
