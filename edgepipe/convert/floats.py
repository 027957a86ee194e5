"""ONNX Runtime's form of ops that have quantized weights and no integer kernel, or one of another op.

Works on a ModelProto that the caller owns, in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.graph.links import Links

if TYPE_CHECKING:
    import onnx

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_LINEAR = _CONVOLUTIONS | {"Gemm", "MatMul"}


def multiply_dynamically(proto: onnx.ModelProto) -> None:
    """Rewrites dynamically quantized ops into what ONNX Runtime computes fastest.

    MatMul and Gemm become DynamicQuantizeLinear and MatMulInteger, which it fuses: on x86 2.8 times as fast
    as in float. Convolutions read floats again: ConvInteger took 3 to 10 times as long as they do.
    """
    links = Links(proto.graph)
    editor = _Editor(proto, links)
    for node in list(proto.graph.node):
        dequantizer = links.producer.get(node.input[0]) if node.op_type in _LINEAR else None
        quantizer = links.producer.get(dequantizer.input[0]) if dequantizer is not None else None
        if dequantizer is None or quantizer is None or quantizer.op_type != "DynamicQuantizeLinear":
            continue
        if node.op_type in _CONVOLUTIONS or not editor.multiply(node, quantizer):
            node.input[0] = quantizer.input[0]
    editor.finish()


def keep_weights_float(proto: onnx.ModelProto) -> None:
    """Makes sure that ops with float weights, or with activations of 16 bits, compute in float, and fast.

    ONNX Runtime, from 1.20 at the latest, quantizes float weights to int8 with one scale for all where it
    finds them between quantized activations: a layer that was to stay in float lost more than it had
    before. A Max of one input, which copies, keeps it from that.

    Quantized weights of such ops are taken off their grid once, on loading, and not at each run: what is
    folded is a Cast and a Mul of constants, never a DequantizeLinear, and only then are they packed for
    the fast kernels. A 3x3 convolution was 3.5 times as fast so.
    """
    links = Links(proto.graph)
    editor = _Editor(proto, links)
    for node in list(proto.graph.node):
        if node.op_type not in _LINEAR or len(node.input) < 2:
            continue
        in_bytes = _reads_bytes(node, links)
        if in_bytes and node.input[1] not in links.constants:
            continue
        if not in_bytes:
            for index in range(1, len(node.input)):
                editor.unfold(node, index)
        editor.guard(node)
    editor.finish()


def _reads_bytes(node: onnx.NodeProto, links: Links) -> bool:
    """Whether the op's data input is dequantized from 8 bits, so that an integer kernel may take it."""
    import onnx

    dequantizer = links.producer.get(node.input[0])
    if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
        return False
    zero = links.constants.get(dequantizer.input[2]) if len(dequantizer.input) > 2 else None
    return zero is None or zero.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


class _Editor:
    """Collects new nodes, each to stand before the one that reads it."""

    def __init__(self, proto: onnx.ModelProto, links: Links) -> None:
        self.proto = proto
        self.links = links
        self.before: dict[str, list[onnx.NodeProto]] = {}
        self.replaced: dict[str, onnx.NodeProto] = {}

    def multiply(self, node: onnx.NodeProto, quantizer: onnx.NodeProto) -> bool:
        """Replaces a MatMul or Gemm by integer products; False where its form has none."""
        import onnx

        weight = self._dequantized(node.input[1])
        if weight is None or weight[0].ndim != 2:
            return False
        integers, scales, _ = weight
        if node.op_type == "Gemm" and any(each.name == "transB" and each.i for each in node.attribute):
            integers = np.ascontiguousarray(integers.T)
        name, make = node.output[0], onnx.helper.make_node
        products, real, step, scaled = (f"{name}.{part}" for part in ("products", "real", "step", "scaled"))
        bias = [node.input[2]] if len(node.input) > 2 and node.input[2] else []
        values, scale, zero_point = quantizer.output
        made = [
            make("MatMulInteger", [values, self._add(f"{name}.weight", integers), zero_point], [products]),
            make("Cast", [products], [real], to=onnx.TensorProto.FLOAT),
            make("Mul", [scale, self._add(f"{name}.scale", scales)], [step]),
            make("Mul", [real, step], [scaled if bias else name]),
        ]
        if bias:
            made.append(make("Add", [scaled, *bias], [name]))
        self.before[name] = made[:-1]
        self.replaced[name] = made[-1]
        return True

    def unfold(self, node: onnx.NodeProto, index: int) -> None:
        """Puts Cast and Mul in the place of a constant's DequantizeLinear."""
        import onnx

        name = node.input[index]
        found = self._dequantized(name)
        if found is None:
            return
        integers, scales, axis = found
        dequantizer = self.links.producer[name]
        shape = [1] * integers.ndim
        if scales.size > 1:
            shape[axis] = -1
        factor = self._add(f"{name}.factor", scales.reshape(shape if scales.size > 1 else ()))
        cast = onnx.helper.make_node(
            "Cast", [dequantizer.input[0]], [f"{name}.real"], to=onnx.TensorProto.FLOAT
        )
        self.before[name] = [cast]
        self.replaced[name] = onnx.helper.make_node("Mul", [f"{name}.real", factor], [name])

    def guard(self, node: onnx.NodeProto) -> None:
        """Parts the op, and an activation function behind it, from the QuantizeLinear that follows."""
        import onnx

        reader = self._only_reader(node)
        while reader is not None and reader.op_type in ("Relu", "Clip"):
            reader = self._only_reader(reader)
        if reader is not None and reader.op_type == "QuantizeLinear":
            name = f"{reader.input[0]}.kept_float"
            copy = onnx.helper.make_node("Max", [reader.input[0]], [name], name=name)
            self.before.setdefault(reader.output[0], []).append(copy)
            reader.input[0] = name

    def _only_reader(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        readers = self.links.consumers.get(node.output[0], [])
        return readers[0][0] if len(readers) == 1 else None

    def finish(self) -> None:
        """Puts the new nodes into the graph and takes out what nobody reads any more."""
        graph = self.proto.graph
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            name = node.output[0]
            nodes += [*self.before.get(name, []), self.replaced.get(name, node)]
        needed = {value.name for value in graph.output}
        kept = []
        for node in reversed(nodes):
            if needed.intersection(node.output):
                kept.append(type(node).FromString(node.SerializeToString()))
                needed.update(node.input)
        del graph.node[:]
        graph.node.extend(reversed(kept))
        constants = [tensor for tensor in graph.initializer if tensor.name in needed]
        del graph.initializer[:]
        graph.initializer.extend(constants)

    def _dequantized(self, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int] | None:
        """Integers, scales and axis of a constant on a symmetric grid that stands behind DequantizeLinear."""
        import onnx

        node = self.links.producer.get(name)
        if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in self.links.constants:
            return None
        integers, scales = (onnx.numpy_helper.to_array(self.links.constants[each]) for each in node.input[:2])
        if len(node.input) > 2 and onnx.numpy_helper.to_array(self.links.constants[node.input[2]]).any():
            return None
        return integers, scales, next((each.i for each in node.attribute if each.name == "axis"), 1)

    def _add(self, name: str, array: np.ndarray[Any, Any]) -> str:
        import onnx

        while name in self.links.constants or name in self.links.producer:
            name += "_"
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        self.proto.graph.initializer.append(tensor)
        self.links.constants[name] = tensor
        return name
