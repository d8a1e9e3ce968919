"""How the report names and paints the five methods, on light ground and on dark.

A colour's contrast to the ground says how much a method computes: `full` stands out most, `ast`
least. Any two stay apart for readers with protanopia, deuteranopia and tritanopia.
"""

from dataclasses import dataclass

__all__ = ["METHODS", "STYLES", "MethodStyle", "css_variables"]


@dataclass(frozen=True)
class MethodStyle:
    """What the report shows for a method: its words, and its colours as `#rrggbb`."""

    words: str
    light: str
    dark: str


STYLES = {
    "full": MethodStyle("attention as trained", "#333c4d", "#eef1f6"),
    "asc": MethodStyle("conditional half only, serves both halves", "#d97b1c", "#e58f35"),
    "wa-rs": MethodStyle("window, plus the kept residual", "#6cb4e4", "#79bff0"),
    "wa-rs+asc": MethodStyle("window and residual, conditional half only", "#6f3fa6", "#7d4fc4"),
    "ast": MethodStyle("nothing: returns its last output", "#cbe6d8", "#24493f"),
}
"""Methods by name, from most to least computed."""
METHODS = tuple(STYLES)


def css_variables() -> str:
    """Return the CSS that defines `--m0`, `--m1`, … in the order of `METHODS`."""
    pairs = (
        f"--m{number}:light-dark({style.light},{style.dark})"
        for number, style in enumerate(STYLES.values())
    )
    return f":root{{{';'.join(pairs)}}}"
