"""A Torch-TensorRT whose networks are lists of names: all that lies before it runs as it is."""

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import fx

REFUSED = torch.ops.aten.tanh.default


@dataclass
class Tensor:
    """A tensor of a network."""

    name: str


@dataclass
class Network:
    """What the converters made, by name."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def mark_output(self, tensor: Tensor) -> None:
        self.outputs.append(tensor)

    def add_identity(self, tensor: Tensor) -> SimpleNamespace:
        self.layers.append("identity")
        made = Tensor(f"{tensor.name} again")
        return SimpleNamespace(get_output=lambda _: made)


class Interpreter(fx.Interpreter):
    """Makes a network of a graph; an operator that it doesn't know is refused."""

    def __init__(self, module, specs, output_dtypes, compilation_settings) -> None:
        super().__init__(module)
        self.ctx, self.builder = SimpleNamespace(net=Network()), "the builder"
        self.specs, self.dtypes, self.settings = specs, output_dtypes, compilation_settings

    def run(self) -> None:
        raise AssertionError("would build the engine")

    def placeholder(self, target, args, kwargs) -> Tensor:
        self.ctx.net.inputs.append(Tensor(target))
        return self.ctx.net.inputs[-1]

    def get_attr(self, target, args, kwargs) -> Tensor:
        self.ctx.net.layers.append(target)
        return Tensor(target)

    def call_function(self, target, args, kwargs) -> Tensor:
        if target is REFUSED:
            raise RuntimeError(f"Conversion of function {target} not currently supported!\nSorry.")
        self.ctx.net.layers.append(str(target))
        return Tensor(str(target))

    def output(self, target, args, kwargs) -> list[Tensor]:
        for value in dict.fromkeys(map(id, args[0])):
            self.ctx.net.mark_output(next(x for x in args[0] if id(x) == value))
        return list(args[0])


@dataclass
class Settings:
    """Those of an older version: it doesn't know of biases that are causal."""

    min_block_size: int = 5
    require_full_compilation: bool = False
    decompose_attention: bool = False


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it into the place of the real one."""
    contents = {
        "torch_tensorrt": {"Input": SimpleNamespace, "__version__": "2.13.0"},
        "torch_tensorrt.dynamo": {},
        "torch_tensorrt.dynamo.lowering": {
            "get_decompositions": lambda experimental, decompose: {},
            "pre_export_lowering": lambda exported, settings: exported,
            "post_lowering": lambda module, settings: module,
        },
        "torch_tensorrt.dynamo.conversion": {"TRTInterpreter": Interpreter},
        "torch_tensorrt.dynamo._settings": {"CompilationSettings": Settings},
    }
    for name, held in contents.items():
        module = ModuleType(name)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, name, module)
