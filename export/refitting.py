"""Put a checkpoint's weights into engines that hold theirs, without building: TensorRT's refit."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch

from ditc.passes.graphs import dtype_name
from ditc.runtime.cuda import open_device
from ditc.runtime.engine_info import EngineInfo
from ditc.runtime.errors import EngineError
from ditc.runtime.rtx_engine import DTYPES
from ditc.runtime.rtx_library import Library

from .checkpoint import Checkpoint
from .engines import ENGINE
from .lowered import Source

__all__ = ["refit_engines"]

TYPES = {dtype: name for name, dtype in DTYPES.items()}


def refit_engines(
    folder: Path,
    info: EngineInfo,
    sources: Mapping[str, Source],
    checkpoint: Checkpoint,
    module: ModuleType | None = None,
) -> None:
    """Replace the weights of a folder's engines by those of a checkpoint.

    Args:
        folder: holds the engines' files, which are overwritten one after the other.
        info: what the manifest says of them; they were built to be refitted.
        sources: which tensor of the checkpoint each weight is, by its name in the engines.
        checkpoint: whose tensors.
        module: the TensorRT module, imported by the name in `info` if None.

    Raises:
        EngineError: if library, driver or GPU are missing, or refuse a weight.
    """
    library = Library(info, module)
    if module is None:
        library.check_device(open_device())
    tensors = {
        name: source.changed(checkpoint.tensor(source.target)).contiguous()
        for name, source in sources.items()
    }
    for path in sorted(folder.glob(f"*{ENGINE}")):
        path.write_bytes(_refitted(library, path, tensors))


def _refitted(library: Library, path: Path, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return an engine with other weights in it; those that aren't given stay."""
    trt, engine = library.trt, library.open(path, path.stem)
    refitter = trt.Refitter(engine, library.logger)
    for name in refitter.get_all_weights():
        if name not in tensors:
            continue
        tensor = tensors[name]
        dtype = getattr(trt.DataType, TYPES[dtype_name(tensor.dtype)])
        given = trt.Weights(dtype, tensor.data_ptr(), tensor.numel())
        if not refitter.set_named_weights(name, given):
            raise EngineError(f"{path.stem}: {library.named} refuses {name}: {library.reason()}")
    if not refitter.refit_cuda_engine():
        raise EngineError(f"{path.stem}: {library.named} can't be refitted: {library.reason()}")
    config = engine.create_serialization_config()
    if hasattr(trt.SerializationFlag, "INCLUDE_REFIT"):
        config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    return bytes(engine.serialize_with_config(config))
