"""The report as Markdown: a table a section, absent and failed entries with their reasons."""

from collections.abc import Mapping, Sequence

from .gpu_entries import Entry

__all__ = ["markdown"]

DRY = (
    "**This is a dry run on a CPU, with tiny shapes: its times say nothing about any GPU.** It "
    "shows that everything the report does can be done.\n"
)


def markdown(
    entries: Sequence[Entry], machine: Mapping[str, str | int | None], *, dry_run: bool
) -> str:
    """Return a report as Markdown."""
    known = {name: value for name, value in machine.items() if value is not None}
    missing = [name for name, value in machine.items() if value is None]
    lines = [f"# {known.get('gpu', known['processor'])}", "", *([DRY] if dry_run else [])]
    lines.append(", ".join(f"{name} {value}" for name, value in known.items()) + ".")
    if missing:
        lines.append(f"Absent: {', '.join(missing)}.")
    for section in dict.fromkeys(entry.section for entry in entries):
        lines += ["", f"## {section.capitalize()}", ""]
        lines += _section([entry for entry in entries if entry.section == section])
    return "\n".join(lines) + "\n"


def _section(entries: Sequence[Entry]) -> list[str]:
    columns = list(dict.fromkeys(name for entry in entries for name in entry.values))
    lines = []
    shown = [entry for entry in entries if entry.values]
    if shown:
        lines.append("| " + " | ".join(["", *(name.replace("_", " ") for name in columns)]) + " |")
        lines.append("|---" * (len(columns) + 1) + "|")
        lines += [_row(entry, columns) for entry in shown]
    others = [entry for entry in entries if entry.status != "measured"]
    if others:
        lines += ["", *(f"- {entry.name}: {entry.status}, {entry.reason}" for entry in others)]
    return lines


def _row(entry: Entry, columns: Sequence[str]) -> str:
    cells = [_text(entry.values.get(name)) for name in columns]
    return "| " + " | ".join([entry.name, *cells]) + " |"


def _text(value: float | int | str | bool | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
