"""Nodes that do nothing, or whose work another node can take over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.graph import edit

if TYPE_CHECKING:
    import onnx_ir as ir


def drop_no_ops(graph: ir.Graph) -> bool:
    """Removes nodes that give their input back unchanged; True where there were any."""
    dropped = False
    for node in edit.nodes(graph):
        source, result = node.inputs[0] if node.inputs else None, node.outputs[0]
        if source is None or not _is_no_op(node) or (result.is_graph_output() and source.is_graph_input()):
            continue
        if any(extra.uses() or extra.is_graph_output() for extra in node.outputs[1:]):
            continue
        if result.is_graph_output() and (source.is_graph_output() or source.is_initializer()):
            continue
        edit.replace_value(graph, result, source)
        graph.remove(node, safe=True)
        dropped = True
    return dropped


def _is_no_op(node: ir.Node) -> bool:
    source, result = node.inputs[0], node.outputs[0]
    match node.op_type:
        case "Identity":
            nothing = True
        case "Dropout":
            nothing = not _is_training(node)
        case "Cast":
            nothing = source is not None and source.dtype is not None and source.dtype == result.dtype
        case "Pad":
            pads = edit.constant_input(node, 1)
            nothing = pads is not None and not pads.any()
        case "Transpose":
            permutation = edit.ints(node, "perm")
            nothing = permutation != [] and permutation == sorted(permutation)
        case "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand":
            nothing = _same_shape(source, result)
        case _:
            nothing = node.op_type in ("Concat", "Sum", "Max", "Min", "Mean") and len(node.inputs) == 1
    return nothing


def _is_training(dropout: ir.Node) -> bool:
    if len(dropout.inputs) < 3 or dropout.inputs[2] is None:
        return False
    flag = edit.constant_input(dropout, 2)
    return flag is None or bool(flag.any())


def _same_shape(source: ir.Value | None, result: ir.Value) -> bool:
    if source is None or source.shape is None or result.shape is None:
        return False
    # two unnamed dynamic sizes may differ, two sizes of one name may not
    before, after = [str(size) for size in source.shape], [str(size) for size in result.shape]
    return before == after and "None" not in before


def merge_pads(graph: ir.Graph) -> bool:
    """Moves zero padding of the spatial axes into the convolution after it; True where there was any."""
    merged = False
    for node in edit.nodes(graph, "Conv"):
        pad = node.inputs[0].producer() if node.inputs[0] is not None else None
        if (
            pad is None
            or pad.op_type != "Pad"
            or edit.text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        ):
            continue
        added = _spatial_padding(pad)
        if added is None:
            continue
        import onnx_ir as ir

        pads = np.add(edit.ints(node, "pads", [0] * len(added)), added)
        node.attributes.pop("auto_pad", None)
        node.attributes["pads"] = ir.AttrInt64s("pads", [int(size) for size in pads])
        node.replace_input_with(0, pad.inputs[0])
        merged = True
    return merged


def _spatial_padding(pad: ir.Node) -> list[int] | None:
    """Zeros that the Pad adds to the spatial axes, in Conv's order; None where it does anything else."""
    amounts, rank = edit.constant_input(pad, 1), edit.sizes(pad.inputs[0])
    if amounts is None or rank is None or edit.text(pad, "mode", "constant") != "constant":
        return None
    value = edit.constant_input(pad, 2)
    if len(pad.inputs) > 2 and pad.inputs[2] is not None and (value is None or value.any()):
        return None
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        return None
    begin, end = amounts[: len(rank)], amounts[len(rank) :]
    if (amounts < 0).any() or begin[:2].any() or end[:2].any():
        return None
    return [*begin[2:].tolist(), *end[2:].tolist()]


def globalize_pools(graph: ir.Graph) -> None:
    """Writes each average over the whole feature map as GlobalAveragePool, for which integer kernels exist.

    A mean over many values spans a narrower range than they do, and integer kernels let the global
    pool's output have a grid of its own; that of a windowed pool has its input's, and ONNX Runtime has
    no integer ReduceMean at all.
    """
    import onnx_ir as ir

    for node in edit.nodes(graph, "AveragePool", "ReduceMean"):
        if not (_is_global_pool(node) if node.op_type == "AveragePool" else _is_spatial_mean(node)):
            continue
        result = node.outputs[0]
        pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=node.name)
        pooled = pool.outputs[0]
        pooled.name, pooled.type = edit.unused_name(graph, f"{result.name}.global"), result.type
        graph.insert_before(node, pool)
        if node.op_type == "ReduceMean" and not edit.integer(node, "keepdims", 1):
            flat = ir.node(
                "Flatten", [pooled], {"axis": 1}, name=edit.unused_name(graph, f"{node.name}.flat")
            )
            graph.insert_before(node, flat)
            pooled = flat.outputs[0]
            pooled.name, pooled.type = edit.unused_name(graph, f"{result.name}.flat"), result.type
        pooled.shape = result.shape
        edit.replace_value(graph, result, pooled)
        graph.remove(node, safe=True)


def _is_global_pool(node: ir.Node) -> bool:
    """Whether the window of an AveragePool is the whole feature map."""
    sizes = edit.sizes(node.inputs[0])
    return (
        sizes is not None
        and edit.ints(node, "kernel_shape") == list(sizes[2:])
        and not any(edit.ints(node, "pads"))
        and not edit.text(node, "auto_pad", "NOTSET").startswith("SAME")
        and not edit.integer(node, "ceil_mode", 0)
    )


def _is_spatial_mean(node: ir.Node) -> bool:
    """Whether a ReduceMean is over the height and width of an NCHW feature map."""
    sizes = edit.sizes(node.inputs[0])
    given = edit.constant_input(node, 1) if len(node.inputs) > 1 else None
    axes = edit.ints(node, "axes") if given is None else [int(axis) for axis in given]
    return sizes is not None and len(sizes) == 4 and sorted(axis % 4 for axis in axes) == [2, 3]
