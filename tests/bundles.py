"""Tiny bundles made by hand, and what they compute in numpy, the reference of the tests.

One "attention" site is a linear map h = x @ w. Five steps run three graphs: `full` computes h and
writes it and its sum over channels; `shared` reads h; `rest` reads the sum and writes h anew.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from ditc.runtime.entries import BucketInfo, FileInfo, InputInfo, ModelInfo, OutputInfo, SlotInfo
from ditc.runtime.manifest import MANIFEST_FILE, Manifest
from ditc.runtime.sampler import SamplerTable

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]

SHAPE = (2, 2, 3, 5)
OUTPUT = "blocks.0.attn.output"
RESIDUAL = "blocks.0.attn.residual"
STEPS = 5
INPUTS = (
    InputInfo("hidden_states", SHAPE, "float32", "latents"),
    InputInfo("timestep", (2,), "int64", "timestep"),
    InputInfo("class_labels", (2,), "int64", "condition"),
)
SLOTS = (
    SlotInfo(OUTPUT, "blocks.0.attn", "output", SHAPE, "float32", 0),
    SlotInfo(RESIDUAL, "blocks.0.attn", "residual", (2, 3, 5), "float32", 1),
)
KINDS = {0: "full", 1: "shared", 2: "rest", 3: "shared", 4: "full"}
READS = {"full": (), "shared": (OUTPUT,), "rest": (RESIDUAL,)}
WRITES = {"full": (OUTPUT, RESIDUAL), "shared": (), "rest": (OUTPUT,)}
WEIGHTS = {"full": ("embedding", "w"), "shared": ("embedding",), "rest": ("embedding", "w")}
RECORDED = {"class_labels": np.array([3, 9], np.int64)}
TABLE = SamplerTable(
    scheduler="ByHand",
    timesteps=(800.0, 600.0, 400.0, 200.0, 0.0),
    init_noise_scale=1.5,
    input_scale=(0.5, 0.75, 1.0, 1.0, 1.25),
    latents=((0.9, 0.0), (0.8, 0.1), (0.9, 0.0), (0.7, 0.2), (1.0, 0.0)),
    outputs=((0.1, 0.0), (0.2, -0.1), (0.1, 0.0), (-0.1, 0.3), (0.2, 0.0)),
    noise=(0.0, 0.0, 0.0, 0.0, 0.0),
)
NOISY = replace(TABLE, noise=(0.1, 0.0, 0.2, 0.1, 0.0))


def make_weights() -> dict[str, Floats]:
    draw = np.random.default_rng(7)
    return {
        "w": (draw.standard_normal((5, 5)) * 0.3).astype(np.float32),
        "embedding": draw.standard_normal((10, 5)).astype(np.float32),
    }


@dataclass
class Reference:
    """What the graphs compute, step by step, with the slots as plain arrays."""

    weights: dict[str, Floats]
    double: bool = False

    def __post_init__(self) -> None:
        self.slots: dict[str, Floats] = {}

    def step(self, k: int, hidden_states: Array, timestep: Array, class_labels: Array) -> Floats:
        x = np.asarray(hidden_states, np.float32)
        kind = KINDS[k]
        if kind == "full":
            h = x @ self.weights["w"]
            self.slots = {OUTPUT: h, RESIDUAL: h.sum(axis=1)}
        elif kind == "rest":
            h = np.float32(0.25) * (x @ self.weights["w"]) + self.slots[RESIDUAL][:, None]
            self.slots[OUTPUT] = h
        else:
            h = self.slots[OUTPUT]
        embedded = self.weights["embedding"][np.asarray(class_labels, np.int64)]
        told = np.asarray(timestep, np.float32)[:, None, None, None] * np.float32(0.001)
        sample = x + h + embedded[:, None, None, :] + told
        return np.concatenate([sample, -sample], axis=1) if self.double else sample


def make_graph(
    kind: str, weights: dict[str, Floats], offsets: dict[str, tuple[int, int]], double: bool = False
) -> bytes:
    nodes = []
    scalars = {"quarter": np.float32(0.25), "told_scale": np.float32(0.001)}
    lists = {"channel": [1], "middle": [1, 2], "behind": [1, 2, 3]}
    if kind == "full":
        nodes += [
            helper.make_node("MatMul", ["hidden_states", "w"], [OUTPUT]),
            helper.make_node("ReduceSum", [OUTPUT, "channel"], [RESIDUAL], keepdims=0),
        ]
    if kind == "rest":
        nodes += [
            helper.make_node("MatMul", ["hidden_states", "w"], ["product"]),
            helper.make_node("Mul", ["product", "quarter"], ["part"]),
            helper.make_node("Unsqueeze", [RESIDUAL, "channel"], ["spread"]),
            helper.make_node("Add", ["part", "spread"], [OUTPUT]),
        ]
    nodes += [
        helper.make_node("Gather", ["embedding", "class_labels"], ["embedded"]),
        helper.make_node("Unsqueeze", ["embedded", "middle"], ["embedded_4d"]),
        helper.make_node("Cast", ["timestep"], ["time"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["time", "told_scale"], ["told"]),
        helper.make_node("Unsqueeze", ["told", "behind"], ["told_4d"]),
        helper.make_node("Add", ["hidden_states", OUTPUT], ["with_site"]),
        helper.make_node("Add", ["with_site", "embedded_4d"], ["with_label"]),
        helper.make_node("Add", ["with_label", "told_4d"], ["plain" if double else "sample"]),
    ]
    if double:
        nodes += [
            helper.make_node("Neg", ["plain"], ["negated"]),
            helper.make_node("Concat", ["plain", "negated"], ["sample"], axis=1),
        ]
    shapes = {info.name: info for info in (*INPUTS, *SLOTS)}
    inputs = [value_of(shapes[name]) for name in (*[i.name for i in INPUTS], *READS[kind])]
    outputs = [value_of(output_info(double)), *(value_of(shapes[n]) for n in WRITES[kind])]
    constants = [
        *(numpy_helper.from_array(np.asarray(value), name) for name, value in scalars.items()),
        *(numpy_helper.from_array(np.array(v, np.int64), name) for name, v in lists.items()),
    ]
    used = {name for node in nodes for name in node.input}
    kept = [constant for constant in constants if constant.name in used]
    kept += [external(name, weights[name], offsets[name]) for name in WEIGHTS[kind]]
    return make_model(helper.make_graph(nodes, kind, inputs, outputs, kept))


def make_model(graph: onnx.GraphProto) -> bytes:
    opsets = [helper.make_opsetid("", 20)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return model


def external(name: str, array: Floats, place: tuple[int, int]) -> TensorProto:
    tensor = TensorProto(
        name=name,
        data_type=TensorProto.FLOAT,
        dims=array.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (
        ("location", "weights.safetensors"),
        ("offset", str(place[0])),
        ("length", str(place[1])),
    ):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def value_of(info: InputInfo | OutputInfo | SlotInfo) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(info.dtype))
    return helper.make_tensor_value_info(info.name, kind, info.shape)


def output_info(double: bool) -> OutputInfo:
    channels = 2 * SHAPE[1] if double else SHAPE[1]
    return OutputInfo("sample", (SHAPE[0], channels, *SHAPE[2:]), "float32")


def save_weights(path: Path, weights: dict[str, Floats]) -> dict[str, tuple[int, int]]:
    """Write a safetensors file; return each tensor's offset in it and length."""
    save_file(weights, path)
    raw = path.read_bytes()
    return {name: (raw.index(array.tobytes()), array.nbytes) for name, array in weights.items()}


def make_manifest(
    cfg: str | None = "cond-first", sampler: SamplerTable | None = TABLE, double: bool = False
) -> Manifest:
    """Return the manifest, with files whose digests are made up."""
    buckets = tuple(
        BucketInfo(
            name=kind,
            graph=f"{kind}.onnx",
            steps=tuple(step for step, ran in KINDS.items() if ran == kind),
            inputs=tuple(info.name for info in INPUTS),
            reads=READS[kind],
            writes=WRITES[kind],
            methods={"blocks.0.attn": kind},
            multiply_adds=0 if kind == "shared" else 300,
            weights=WEIGHTS[kind],
        )
        for kind in READS
    )
    paths = [*(b.graph for b in buckets), "weights.safetensors", "conditioning.safetensors"]
    return Manifest(
        ditc="0.1.0",
        target="onnx",
        precision="fp32",
        model=ModelInfo("tests.Tiny", "0" * 64),
        cfg=cfg,
        steps=STEPS,
        inputs=INPUTS,
        outputs=(output_info(double),),
        slots=SLOTS,
        buckets=buckets,
        sampler=sampler,
        files={path: FileInfo("0" * 64, 1) for path in paths},
    )


def write_bundle(
    root: Path,
    cfg: str | None = "cond-first",
    sampler: SamplerTable | None = TABLE,
    double: bool = False,
) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    weights = make_weights()
    offsets = save_weights(root / "weights.safetensors", weights)
    save_file(RECORDED, root / "conditioning.safetensors")
    for kind in READS:
        (root / f"{kind}.onnx").write_bytes(make_graph(kind, weights, offsets, double))
    return write_manifest(root, make_manifest(cfg, sampler, double))


def write_manifest(root: Path, manifest: Manifest) -> Path:
    """Write the manifest with the true digests of the files it lists."""
    files = {path: info_of(root / path) for path in manifest.files}
    (root / MANIFEST_FILE).write_text(replace(manifest, files=files).to_json())
    return root


def info_of(path: Path) -> FileInfo:
    content = path.read_bytes()
    return FileInfo(hashlib.sha256(content).hexdigest(), len(content))


def arrays_for(step: int) -> dict[str, Array]:
    draw = np.random.default_rng(step)
    return {
        "hidden_states": draw.standard_normal(SHAPE).astype(np.float32),
        "timestep": np.full(2, 100 * step, np.int64),
        "class_labels": np.array([step, 9], np.int64),
    }
