"""What models are lowered to by this version, and in which precision."""

__all__ = ["PRECISIONS", "TARGETS"]

TARGETS = ("onnx",)
PRECISIONS = ("fp32",)
