"""Tell a bundle how it is called: which graph each call of a step runs, where arguments go."""

import torch

from ditc.passes import Program, Schedule
from ditc.passes.calls import calls_of
from ditc.runtime.arguments import ArgumentsInfo, digest_of_array
from ditc.runtime.calls import CallInfo

__all__ = ["arguments_info", "calls_info"]

PLAIN = (bool, int, float, str)


def calls_info(sched: Schedule) -> tuple[CallInfo, ...]:
    """Return what each call of a step runs, nothing where a step is one call."""
    found = []
    for call in calls_of(sched.program.cfg):
        runs = [run for run in sched.runs if run.call == call]
        buckets = [sched.bucket_of(run.step, call) for run in runs]
        borrowed = tuple(
            tuple(slot.name for slot in bucket.reads if slot.site in run.borrowed)
            for run, bucket in zip(runs, buckets, strict=True)
        )
        if call:
            found.append(CallInfo(call, tuple(bucket.name for bucket in buckets), borrowed))
    return tuple(found)


def arguments_info(sched: Schedule) -> ArgumentsInfo:
    """Return how the denoiser's arguments become inputs."""
    program = sched.program
    return ArgumentsInfo(
        paths=dict(program.in_paths),
        constants={
            path: value if value is None or isinstance(value, PLAIN) else repr(value)
            for path, value in program.constants.items()
            if not isinstance(value, torch.Tensor) and path != "return_dict"
        },
        digests=_digests(program),
        stacked=tuple(sorted(program.stacked)),
        scheduler=sched.plan.scheduler,
    )


def _digests(program: Program) -> dict[str, str]:
    return {
        path: digest_of_array(value.detach().cpu().double().numpy())
        for path, value in program.constants.items()
        if isinstance(value, torch.Tensor)
    }
