"""`ditc search`: a model and a threshold in, a plan out; stopped, it goes on where it was."""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ditc.export import sampler_table
from ditc.passes import Method, Program
from ditc.runtime.errors import DitcError
from ditc.runtime.sampler import SamplerTable

from .decisions import METRIC, Checkpoint, Decided, Found
from .models import load_recording, parse_call
from .progress import progress
from .search import greedy

__all__ = ["Journal", "search"]

SLOTS, TRAJECTORY = "slots/", "trajectory/"


def search(options: argparse.Namespace) -> None:
    """Search a plan as the options ask, and write it.

    Where the search is goes into a journal beside the plan after every step; a search with the
    same arguments goes on from there, and ends in the same plan.

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
    if known is not None:
        sys.stderr.write(f"going on behind step {len(known.steps) - 1}\n")
    with progress("search", table.steps - (len(known.steps) if known else 0)) as advance:

        def keep(checkpoint: Checkpoint) -> None:
            journal.write(checkpoint)
            advance()

        found = greedy(
            program,
            table,
            options.threshold,
            guidance_scale=options.guidance_scale,
            seed=options.seed,
            resume=known,
            on_step=keep,
        )
    written = options.out.with_name(options.out.name + ".new")
    found.plan.save(written)
    written.replace(options.out)
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
        "tensors_sha256": _digest(program),
        "cfg": program.cfg,
        "sampler": table.to_json(),
        "metric": METRIC,
        "threshold": options.threshold,
        "guidance_scale": options.guidance_scale,
        "seed": options.seed,
    }


def _digest(program: Program) -> str:
    """Return the SHA-256 of the weights and of the conditioning that a search runs with."""
    digest = hashlib.sha256()
    conditions = {entry.name for entry in program.inputs if entry.role == "condition"}
    weights = program.graph_module.state_dict()
    for name, value in (*weights.items(), *program.example.items()):
        if name in conditions or name in weights:
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _summary(out: Path, found: Found) -> str:
    plan = found.plan
    full = (plan.cost.full - plan.cost.rest) * plan.steps
    left = plan.site_multiply_adds()
    spent = found.multiply_adds / found.plain_multiply_adds
    return (
        f"{out}: {left / full:.1%} of attention left; the search computed {spent:.0%} of what "
        "whole runs of the model would have\n"
    )


class Journal:
    """Where a search is, on disk: one safetensors file, replaced whole after every step."""

    def __init__(self, path: Path, arguments: Mapping[str, object]) -> None:
        self.path = path
        self._arguments = json.dumps(arguments, sort_keys=True)

    def read(self) -> Checkpoint | None:
        """Return where a search with the same arguments was, None if there is nothing of it."""
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        if about.get("arguments") != self._arguments:
            return None
        return Checkpoint(
            steps=tuple(_parse(step) for step in json.loads(about["steps"])),
            slots=_part(tensors, SLOTS),
            trajectory=_part(tensors, TRAJECTORY),
        )

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace the file by where the search is now."""
        tensors = {f"{SLOTS}{name}": value for name, value in checkpoint.slots.items()}
        tensors |= {f"{TRAJECTORY}{name}": value for name, value in checkpoint.trajectory.items()}
        about = {
            "arguments": self._arguments,
            "steps": json.dumps([_record(step) for step in checkpoint.steps]),
        }
        whole = {name: value.contiguous().clone() for name, value in tensors.items()}
        unfinished = self.path.with_name(self.path.name + ".new")
        save_file(whole, unfinished, metadata=about)
        unfinished.replace(self.path)

    def remove(self) -> None:
        """Remove the file: the plan is written."""
        self.path.unlink(missing_ok=True)


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _record(step: Decided) -> dict[str, object]:
    return {
        "methods": step.methods,
        "losses": step.losses,
        "multiply_adds": step.multiply_adds,
        "plain_multiply_adds": step.plain_multiply_adds,
    }


def _parse(record: dict[str, Any]) -> Decided:
    return Decided(
        methods={site: Method(name) for site, name in record["methods"].items()},
        losses={
            site: {Method(name): loss for name, loss in tried.items()}
            for site, tried in record["losses"].items()
        },
        multiply_adds=record["multiply_adds"],
        plain_multiply_adds=record["plain_multiply_adds"],
    )
