"""What came of the trial of a model: as text, as a row of the table, and kept as JSON."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from .zoo_trial import Trial

__all__ = ["Outcome", "faults", "keep", "kept", "outcome", "summary", "table"]

TOLERANCE, ENGINE_TOLERANCE = 1e-5, 1e-3
ENGINE = "onnx"


@dataclass(frozen=True)
class Outcome:
    """What came of a model.

    Attributes:
        title: class and variant.
        captured: whether its program is equal to it to the bit.
        failure: why something failed, empty if nothing did.
        eligible: how many sites a plan may compress.
        left_alone: how many others there are, by the reason.
        texts: numbers of text tokens that keep full attention, of all eligible sites.
        errors: largest error over largest value, by method, `mixed` or `onnx`.
        refused: why a method can't be applied, by method.
    """

    title: str
    captured: bool
    failure: str
    eligible: int
    left_alone: Mapping[str, int]
    texts: tuple[int, ...]
    errors: Mapping[str, float]
    refused: Mapping[str, str]

    @property
    def name(self) -> str:
        """Class of the model, without its variant."""
        return self.title.partition(" ")[0]


def outcome(trial: Trial) -> Outcome:
    """Return what came of a trial."""
    sites = trial.program.sites if trial.program else ()
    able = [site for site in sites if site.eligible]
    return Outcome(
        title=trial.tiny.title,
        captured=trial.program is not None,
        failure=trial.failure,
        eligible=len(able),
        left_alone=dict(Counter(site.reason for site in sites if not site.eligible)),
        texts=tuple(sorted({site.text[1] - site.text[0] for site in able} - {0})),
        errors=dict(trial.errors),
        refused=dict(trial.refused),
    )


def faults(result: Outcome) -> list[str]:
    """Return what is wrong with a model, a line each."""
    found = [result.failure] if result.failure else []
    for name, value in result.errors.items():
        limit = ENGINE_TOLERANCE if name == ENGINE else TOLERANCE
        if not value <= limit:
            found.append(f"{name}: error {value:.1e} above {limit:.0e}")
    return found


def kept(path: Path) -> dict[str, Outcome]:
    """Return the outcomes that a file keeps, by title; none where there is no file."""
    if not path.exists():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))
    made = [Outcome(**{**entry, "texts": tuple(entry["texts"])}) for entry in entries]
    return {result.title: result for result in made}


def keep(path: Path, results: Iterable[Outcome]) -> None:
    """Replace a file by one with these outcomes."""
    unfinished = path.with_name(path.name + ".new")
    entries = [asdict(result) for result in results]
    unfinished.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def summary(results: Iterable[Outcome]) -> str:
    """Return the counts in lines: of classes, then of models, of which a class may have several."""
    every = list(results)
    missed = {result.name for result in every if not result.captured}
    names = {result.name for result in every}
    sited = [result for result in every if result.eligible]
    right = [result for result in sited if not faults(result)]
    whole = [result for result in right if not result.refused]
    run = [result for result in right if ENGINE in result.errors]
    lines = [
        f"{len(names) - len(missed)} of {len(names)} classes captured, equal to the bit "
        f"({len(every)} models)",
        f"{len(sited)} models have sites; {len(right)} agree with the reference to {TOLERANCE:.0e}"
        f", {len(whole)} of them under every method",
    ]
    if any(ENGINE in result.errors for result in every):
        lines.append(f"{len(run)} agree with it to {ENGINE_TOLERANCE:.0e} in ONNX Runtime")
    return "\n".join(lines)


def table(results: Iterable[Outcome]) -> str:
    """Return the table of models as Markdown."""
    every = list(results)
    lines = [
        "# Models",
        "",
        "Every transformer of diffusers 0.42 that has attention and takes a timestep, tried at a "
        "tiny size with random weights. Written by `python -m ditc.tools.zoo --onnx --table "
        "docs/models.md`.",
        "",
        *(f"- {line}." for line in summary(every).splitlines()),
        "",
        "*Sites* are the attentions that a plan may compress, of all that there are; *text* says "
        "how many tokens of a sequence keep full attention under a window. *Torch* is the largest "
        "error, over the largest value, of each method and of a mixed plan in 4 steps against the "
        "model's own code with its attentions intercepted, in fp64; *ONNX* that of the mixed plan "
        "lowered and run by ONNX Runtime. Methods that a model can't use are named with the "
        "reason.",
        "",
        "| model | captured | sites | text | torch | ONNX | what is left alone, and why |",
        "|---|---|---|---|---|---|---|",
    ]
    lines.extend(_row(result) for result in every)
    return "\n".join([*lines, ""])


def _row(result: Outcome) -> str:
    failed = [_short(line) for line in faults(result)]
    if not result.captured:
        return f"| {result.title} | no | | | | | {'; '.join(failed)} |"
    told = [f"**{line}**" for line in failed]
    told += [f"{count} × {reason}" for reason, count in result.left_alone.items()]
    told += [f"no `{method}`: {_short(why)}" for method, why in result.refused.items()]
    text = ", ".join(str(count) for count in result.texts)
    sites = f"{result.eligible} of {result.eligible + sum(result.left_alone.values())}"
    torch = [value for name, value in result.errors.items() if name != ENGINE]
    engine = [value for name, value in result.errors.items() if name == ENGINE]
    errors = " | ".join(f"{max(values):.0e}" if values else "" for values in (torch, engine))
    return f"| {result.title} | yes | {sites} | {text} | {errors} | {'; '.join(told)} |"


def _short(message: str) -> str:
    """Return a message without the folders of this machine."""
    line = " ".join(message.split())
    return re.sub(r"(?<!\w)/(?:[^\s/]+/)+(?=[^\s/])", "", line).replace("|", "/")
