"""Leave in an ONNX model only what its computation needs: equal graphs, equal bytes."""

import onnx_ir

__all__ = ["strip"]


def strip(model: onnx_ir.Model) -> None:
    """Drop what differs between machines: traces, paths, tool names."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.producer_name = "ditc"
    model.producer_version = None
    model.doc_string = None
    model.graph.doc_string = None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
