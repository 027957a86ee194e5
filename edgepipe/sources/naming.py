"""Names that the author of a PyTorch module knows: nodes are called after the modules that they come from."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter writes the path of modules that a node comes from, the call last."""
CLASSES = "pkg.torch.onnx.class_hierarchy"
"""Their classes, likewise."""
_OWN_WEIGHT = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CONTAINERS = tuple(
    f"torch.nn.modules.{kind}" for kind in ("container.", "transformer.", "activation.MultiheadAttention")
)


def name_after_modules(proto: onnx.ModelProto) -> None:
    """Renames the nodes that torch's exporter wrote: ``layer1.0.conv1`` rather than ``node_Conv_373``.

    A linear op is called after the module whose weight it takes, an op of one of torch's own layers after
    that layer, and any other after the module whose code calls it, and the call. Nodes whose origin
    is not told keep their names.

    Args:
        proto: The graph, before its metadata is removed; it is edited.
    """
    taken: set[str] = set()
    for node in proto.graph.node:
        name = _name(node)
        if name in taken:
            name = f"{name}.{node.op_type.lower()}"
        unique, number = name, 0
        while unique in taken:
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique)
        node.name = unique


def _name(node: onnx.NodeProto) -> str:
    if node.op_type in _OWN_WEIGHT and len(node.input) > 1 and node.input[1].endswith(".weight"):
        return str(node.input[1]).removesuffix(".weight")
    scopes, classes = _told(node, SCOPES), _told(node, CLASSES)
    if len(scopes) < 2:
        return str(node.name)
    module, call = scopes[-2], scopes[-1]
    if len(classes) > 1 and _is_layer(classes[-2]) and module:
        return module
    return f"{module}.{call}" if module else call


def _is_layer(kind: str) -> bool:
    return kind.startswith("torch.nn.modules.") and not kind.startswith(_CONTAINERS)


def _told(node: onnx.NodeProto, key: str) -> list[str]:
    text = next((each.value for each in node.metadata_props if each.key == key), "[]")
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # another version of the exporter
        return []
    return [str(each) for each in found] if isinstance(found, list) else []
