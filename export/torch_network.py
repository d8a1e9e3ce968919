"""Make a TensorRT network of a program of torch.export, by Torch-TensorRT's converters.

Loaded by `engine_worker.py` in the process that builds the engine; it imports torch and
Torch-TensorRT, nothing of ditc. Every operator is converted, or the program is refused. Inputs and
outputs of the network get the names that the file gives them, so that its engine is bound as any
other.

Torch-TensorRT asks for a GPU as it is imported. What TensorRT-RTX builds for GPUs that are named
needs none: where there is none, it is told of the first of these.
"""

import importlib
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import fx

NAMES_FILE = "names.json"
"""Beside a program in its file: names of `inputs`, `outputs` and sites of `attentions`."""
UNNAMED = "sm89"
"""The GPU that Torch-TensorRT is told of where there is none, and none is named."""


class NotConvertibleError(Exception):
    """Torch-TensorRT isn't there or doesn't convert the program; the message is its reason."""


@dataclass(frozen=True)
class Made:
    """A network and what has to live until it is built.

    Attributes:
        network: of TensorRT.
        builder: that made it.
        attentions: site of each attention in order, None where it is of none.
        kept: holds the values of constants.
    """

    network: Any
    builder: Any
    attentions: tuple[str | None, ...]
    kept: object


def make_network(job: Mapping[str, Any]) -> Made:
    """Return the network of a job's program.

    Args:
        job: `graph`, the program's file; `capabilities`, GPUs as `sm89`; `store`, a safetensors
            file with the values of inputs to bake, None to bake none; `decompose_attention`,
            whether attention is written out, false if it isn't there.

    Raises:
        NotConvertibleError: if it can't be imported, or an operator can't be converted.
    """
    dynamo = import_dynamo(job["capabilities"])
    extra = {NAMES_FILE: ""}
    exported = torch.export.load(job["graph"], extra_files=extra)
    names = json.loads(extra[NAMES_FILE])
    module, settings = lowered(dynamo, exported, bool(job.get("decompose_attention")))
    inputs = list(names["inputs"])
    if job.get("store") is not None:
        inputs = _bake(module, inputs, job["store"])
    interpreter = _interpreter(dynamo, module, settings)
    try:
        outputs = fx.Interpreter.run(interpreter)  # its own `run` would build the engine, too
    except Exception as error:  # converters raise whatever they run into
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise NotConvertibleError(f"Torch-TensorRT: {reason}") from error
    _name(interpreter.ctx.net, inputs, outputs, names["outputs"])
    attentions = tuple(names["attentions"])
    return Made(interpreter.ctx.net, interpreter.builder, attentions, interpreter)


def import_dynamo(capabilities: Sequence[str]) -> SimpleNamespace:
    """Return what of Torch-TensorRT makes networks, imported with a GPU or without.

    Args:
        capabilities: of the GPUs to build for, as `sm89`.

    Raises:
        NotConvertibleError: if it can't be imported.
    """
    if not torch.cuda.is_available():
        digits = (capabilities[0] if capabilities else UNNAMED).removeprefix("sm")
        told = (int(digits[:-1]), int(digits[-1]))
        torch.cuda.get_device_capability = lambda *_: told
        torch.cuda.current_device = lambda: 0
    logging.getLogger("torch_tensorrt").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = importlib.import_module("torch_tensorrt")
            parts = [importlib.import_module(f"torch_tensorrt.dynamo{part}") for part in _PARTS]
    except Exception as error:  # it raises bare exceptions, and libraries fail to load
        raise NotConvertibleError(f"torch_tensorrt can't be imported: {error}") from error
    return SimpleNamespace(package=package, **_gathered(parts))


_PARTS = ("", ".lowering", ".conversion", "._settings")
_TAKEN = (
    "CompilationSettings",
    "TRTInterpreter",
    "get_decompositions",
    "post_lowering",
    "pre_export_lowering",
)


def _gathered(parts: Sequence[ModuleType]) -> dict[str, object]:
    held = {name: value for part in reversed(parts) for name, value in vars(part).items()}
    missing = [name for name in _TAKEN if name not in held]
    if missing:
        raise NotConvertibleError(f"this Torch-TensorRT has no {', '.join(missing)}")
    return {name: held[name] for name in _TAKEN}


def lowered(
    dynamo: SimpleNamespace, exported: torch.export.ExportedProgram, decompose_attention: bool
) -> tuple[fx.GraphModule, Any]:
    """Return a program as the converters take it, and the settings that they read.

    Args:
        dynamo: from `import_dynamo`.
        exported: aten operators only.
        decompose_attention: whether attention is written out.
    """
    known = vars(dynamo.CompilationSettings())
    wanted = {
        "min_block_size": 1,
        "require_full_compilation": True,
        "offload_module_to_cpu": True,
        "disable_tf32": True,
        "truncate_double": True,  # TensorRT has no float64: what is left of it is fp32 there
        "decompose_attention": decompose_attention,
        "attn_bias_is_causal": False,  # true would rewrite masks that look like causal ones
    }
    settings = dynamo.CompilationSettings(**{k: v for k, v in wanted.items() if k in known})
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = dynamo.pre_export_lowering(exported, settings)
        table = dynamo.get_decompositions(False, decompose_attention)
        exported = exported.run_decompositions(table)
        return dynamo.post_lowering(exported.module(), settings), settings


def _interpreter(dynamo: SimpleNamespace, module: fx.GraphModule, settings: object) -> Any:
    values = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    specs = [dynamo.package.Input(shape=tuple(v.shape), dtype=v.dtype) for v in values]
    (results,) = module.graph.output_node().args
    assert isinstance(results, list | tuple)
    dtypes = [result.meta["val"].dtype for result in results if isinstance(result, fx.Node)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators without a converter, which raise later
        return dynamo.TRTInterpreter(
            module, specs, output_dtypes=dtypes, compilation_settings=settings
        )


def _bake(module: fx.GraphModule, inputs: list[str], store: str) -> list[str]:
    """Turn inputs whose values a store holds into parameters; return the inputs that are left."""
    from safetensors import safe_open

    left: list[str] = []
    placeholders = module.graph.find_nodes(op="placeholder")
    with safe_open(store, "pt") as file:
        held = set(file.keys())
        for number, (node, name) in enumerate(zip(placeholders, inputs, strict=True)):
            if name not in held:
                left.append(name)
                continue
            value = torch.nn.Parameter(file.get_tensor(name), requires_grad=False)
            module.register_parameter(f"baked_{number}", value)
            with module.graph.inserting_after(placeholders[-1]):
                baked = module.graph.get_attr(f"baked_{number}")
            baked.meta.update(node.meta)
            node.replace_all_uses_with(baked)
            module.graph.erase_node(node)
    module.recompile()
    return left


def _name(net: Any, inputs: Sequence[str], outputs: Sequence[Any], names: Sequence[str]) -> None:
    """Name a network's inputs and outputs; what is given twice is marked once and repeated here."""
    if net.num_inputs != len(inputs) or len(outputs) != len(names):
        raise NotConvertibleError(
            f"Torch-TensorRT made a network of {net.num_inputs} inputs and {len(outputs)} outputs, "
            f"expected {len(inputs)} and {len(names)}"
        )
    for number, name in enumerate(inputs):
        net.get_input(number).name = name
    marked: set[int] = set()
    for value, name in zip(outputs, names, strict=True):
        if id(value) in marked:
            value = net.add_identity(value).get_output(0)
            net.mark_output(value)
        marked.add(id(value))
        value.name = name
