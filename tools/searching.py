"""`ditc search`: a model and a threshold in, a plan out; stopped, it goes on where it was."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ditc.export import sampler_table
from ditc.passes import Method, Program
from ditc.runtime.errors import DitcError
from ditc.runtime.sampler import SamplerTable

from .models import load_recording, parse_call
from .progress import progress
from .search import METRIC, Decided, Found, greedy

__all__ = ["Journal", "search"]


def search(options: argparse.Namespace) -> None:
    """Search a plan as the options ask, and write it.

    Every decided step goes into a journal beside the plan; a search with the same arguments goes
    on behind what it finds there.

    Raises:
        DitcError: if model, threshold or place are at fault.
    """
    if not options.out.parent.is_dir():
        raise DitcError(f"--out {options.out}: there is no folder {options.out.parent}")
    call = parse_call(options.call)
    recording = load_recording(options.model, options.steps, call, options.calibration)
    program = recording.capture()
    table = sampler_table(recording.scheduler, options.steps)
    journal = Journal(
        options.out.with_name(options.out.name + ".journal"), _arguments(options, program, table)
    )
    known = journal.read()
    if known:
        sys.stderr.write(f"going on behind step {len(known) - 1}\n")
    with progress("search", table.steps) as advance:
        for _ in known:
            advance()

        def keep(step: Decided) -> None:
            journal.append(step)
            advance()

        found = greedy(
            program,
            table,
            options.threshold,
            guidance_scale=options.guidance_scale,
            seed=options.seed,
            decided=known,
            on_step=keep,
        )
    written = options.out.with_name(options.out.name + ".new")
    found.plan.save(written)
    os.replace(written, options.out)  # noqa: PTH105 (atomic, and said so)
    journal.remove()
    sys.stdout.write(_summary(options.out, found))


def _arguments(
    options: argparse.Namespace, program: Program, table: SamplerTable
) -> dict[str, object]:
    """Return everything that the plan depends on, as JSON values."""
    return {
        "model": program.identity.model,
        "config_sha256": program.identity.config_sha256,
        "inputs": [[entry.name, list(entry.shape)] for entry in program.inputs],
        "cfg": program.cfg,
        "sampler": table.to_json(),
        "metric": METRIC,
        "threshold": options.threshold,
        "guidance_scale": options.guidance_scale,
        "seed": options.seed,
    }


def _summary(out: Path, found: Found) -> str:
    plan = found.plan
    full = sum(cost.full for cost in plan.cost.sites.values()) * plan.steps
    left = sum(
        cost.of(plan.method(step, name), plan.windows[name])
        for step in range(plan.steps)
        for name, cost in plan.cost.sites.items()
    )
    spent = found.multiply_adds / found.plain_multiply_adds
    return (
        f"{out}: {left / full:.1%} of attention left; the search computed {spent:.0%} of what "
        "whole runs of the model would have\n"
    )


class Journal:
    """Decided steps on disk: a line of arguments, then a line a step, each complete or ignored."""

    def __init__(self, path: Path, arguments: Mapping[str, object]) -> None:
        self.path = path
        self._head = json.dumps(arguments, sort_keys=True)

    def read(self) -> tuple[Decided, ...]:
        """Return the steps of a search with the same arguments; begin anew for any other."""
        lines = self._complete_lines()
        if not lines or lines[0] != self._head:
            self.path.write_text(self._head + "\n", encoding="utf-8")
            return ()
        steps = tuple(_parse(line) for line in lines[1:])
        self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return steps

    def append(self, step: Decided) -> None:
        """Add a decided step and make sure that it is on disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_format(step) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Remove the journal: the plan is written."""
        self.path.unlink(missing_ok=True)

    def _complete_lines(self) -> Sequence[str]:
        """Return the lines that end in a newline; the last one may have been cut short."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ()
        return text.split("\n")[:-1]


def _format(step: Decided) -> str:
    record = {
        "methods": step.methods,
        "losses": step.losses,
        "multiply_adds": step.multiply_adds,
        "plain_multiply_adds": step.plain_multiply_adds,
    }
    return json.dumps(record)


def _parse(line: str) -> Decided:
    record = json.loads(line)
    return Decided(
        methods={site: Method(name) for site, name in record["methods"].items()},
        losses={
            site: {Method(name): loss for name, loss in tried.items()}
            for site, tried in record["losses"].items()
        },
        multiply_adds=record["multiply_adds"],
        plain_multiply_adds=record["plain_multiply_adds"],
    )
