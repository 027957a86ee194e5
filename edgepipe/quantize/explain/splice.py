"""Networks that are quantized in some layers and float in the others, made of both graphs.

Each junction takes one of five forms, so that one network answers one question: what does this layer
cost alone, what would leaving it in float or at 16 bits gain, is it the weight or the grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from edgepipe.quantize.explain.pairing import Junction, Pairing

if TYPE_CHECKING:
    import onnx

Form = Literal["float", "rounded", "weight", "grid", "wide"]
"""Of a junction: computed in float; as in the quantized graph; with its weight rounded alone; with its
output on the grid alone; with its weight rounded and its output on 16 bits."""
PREFIX = "quantized/"
WIDE_MAX = 32767


class Span(msgspec.Struct, frozen=True):
    """The least and the greatest value that a junction takes: what its finer grids must hold."""

    low: float
    high: float


def rounded_name(junction: Junction) -> str:
    """The name, in a spliced network, of what the quantized graph makes of a junction."""
    return PREFIX + junction.rounded


def splice(
    pairing: Pairing,
    forms: Mapping[str, Form],
    *,
    watch: Sequence[str] = (),
    spans: Mapping[str, Span] | None = None,
    outputs: bool = True,
) -> bytes:
    """Serializes a network in which each junction has its form.

    Args:
        pairing: Both graphs.
        forms: Form of each junction, by its name; "float" for those that are not named.
        watch: More tensors to return, before the outputs: junctions by their names, which are those of the
            float graph's own computation, or what `rounded_name` says.
        spans: Range of each junction whose form is "weight" or "wide".
        outputs: Whether to return the model's outputs.

    Returns:
        An ONNX model, whose outputs are those watched, then the model's.
    """
    import onnx

    builder = _Builder(pairing, forms, spans or {})
    wanted = list(watch)
    if outputs:
        wanted += [builder.value_of(value.name) for value in pairing.reference.graph.output]
    nodes, constants = builder.collect(wanted)
    proto = onnx.ModelProto()
    proto.ir_version = max(pairing.reference.ir_version, pairing.quantized.ir_version)
    proto.opset_import.extend(pairing.quantized.opset_import)
    known = {each.domain for each in proto.opset_import}
    proto.opset_import.extend(each for each in pairing.reference.opset_import if each.domain not in known)
    graph = proto.graph
    graph.name = "spliced"
    graph.input.extend(pairing.reference.graph.input)
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    for index, name in enumerate(wanted):  # a tensor may be wanted twice, or be an input
        graph.node.append(onnx.helper.make_node("Identity", [name], [f"wanted/{index}"]))
        graph.output.append(onnx.helper.make_empty_tensor_value_info(f"wanted/{index}"))
    payload: bytes = proto.SerializeToString(deterministic=True)
    return payload


class _Builder:
    """Collects the nodes that the wanted tensors need, each graph's under its own names."""

    def __init__(self, pairing: Pairing, forms: Mapping[str, Form], spans: Mapping[str, Span]) -> None:

        self.constants: dict[str, onnx.TensorProto] = {}
        self.producer: dict[str, tuple[onnx.NodeProto, str | None]] = {}
        self.rename: dict[str, str] = {}
        for graph, prefix in ((pairing.reference.graph, ""), (pairing.quantized.graph, PREFIX)):
            for tensor in graph.initializer:
                self.constants[prefix + tensor.name] = tensor
            for node in graph.node:
                self.producer |= {prefix + name: (node, prefix) for name in node.output if name}
        for value in pairing.quantized.graph.input:
            self.rename[PREFIX + value.name] = value.name
        for junction in pairing.junctions:
            value = self._form(junction, forms.get(junction.name, "float"), spans)
            self.rename[junction.name] = self.rename[rounded_name(junction)] = value

    def value_of(self, name: str) -> str:
        """What stands for a tensor in the spliced network."""
        return self.rename.get(name, name)

    def _form(self, junction: Junction, form: Form, spans: Mapping[str, Span]) -> str:
        """The name of a junction in that form; nodes that it takes are added."""
        rounded = rounded_name(junction)
        if junction.grid is None:  # there is a weight alone
            return junction.name if form in ("float", "grid") else rounded
        match form:
            case "float":
                return junction.name
            case "rounded":
                return rounded
            case "grid":
                return self._on_grid(junction)
            case _:
                return self._finer(junction, spans[junction.name], wide=form == "wide")

    def _on_grid(self, junction: Junction) -> str:
        """The float graph's value, rounded as the quantized graph rounds its own."""
        dequantizer, prefix = self.producer[rounded_name(junction)]
        quantizer, _ = self.producer[prefix + dequantizer.input[0]]
        steps, name = f"grid/{junction.name}.steps", f"grid/{junction.name}"
        for node, source, result in ((quantizer, junction.name, steps), (dequantizer, steps, name)):
            copy = type(node).FromString(node.SerializeToString())
            copy.input[0], copy.output[0] = source, result
            for index in range(1, len(copy.input)):
                copy.input[index] = prefix + copy.input[index]
            self._add(copy)
        return name

    def _finer(self, junction: Junction, span: Span, *, wide: bool) -> str:
        """The quantized graph's value before its grid, or on one of 16 bits that holds all that was seen.

        The ends of the grid may stand for an activation function, so they hold here too.
        """
        import onnx

        grid = junction.grid
        low = min(grid.low, span.low) if grid else span.low
        high = max(grid.high, span.high) if grid else span.high
        name = f"finer/{junction.name}"
        bounds = [self._constant(f"{name}.{end}", value) for end, value in (("low", low), ("high", high))]
        source = PREFIX + junction.source
        source = self.rename.get(source, source)
        if not wide:
            self._add(onnx.helper.make_node("Clip", [source, *bounds], [name]))
            return name
        step = self._constant(f"{name}.step", max(-low, high, 1e-30) / WIDE_MAX)
        for op, inputs, result in (
            ("Clip", [source, *bounds], f"{name}.clipped"),
            ("Div", [f"{name}.clipped", step], f"{name}.steps"),
            ("Round", [f"{name}.steps"], f"{name}.round"),
            ("Mul", [f"{name}.round", step], name),
        ):
            self._add(onnx.helper.make_node(op, inputs, [result]))
        return name

    def _constant(self, name: str, value: float) -> str:
        import onnx

        self.constants[name] = onnx.numpy_helper.from_array(np.array(value, np.float32), name)
        return name

    def _add(self, node: onnx.NodeProto) -> None:
        """Registers a node whose names are final."""
        self.producer[node.output[0]] = (node, None)

    def _read(self, node: onnx.NodeProto, prefix: str | None) -> list[str]:
        """What a node reads in the spliced network."""
        if prefix is None:
            return list(node.input)
        return [self.value_of(prefix + name) if name else "" for name in node.input]

    def collect(self, wanted: Sequence[str]) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """The nodes that tensors need, each after those that it reads, and the constants among them."""
        nodes: list[onnx.NodeProto] = []
        constants: list[onnx.TensorProto] = []
        done: set[str] = set()
        stack = [(name, False) for name in reversed(wanted)]
        while stack:
            name, ready = stack.pop()
            if name in done or not name:
                continue
            if name in self.constants:
                tensor = type(self.constants[name]).FromString(self.constants[name].SerializeToString())
                tensor.name = name
                constants.append(tensor)
            if name not in self.producer or name in self.constants:
                done.add(name)
                continue
            node, prefix = self.producer[name]
            inputs = self._read(node, prefix)
            if not ready:
                stack.append((name, True))
                stack.extend((each, False) for each in reversed(inputs))
                continue
            copy = type(node).FromString(node.SerializeToString())
            outputs = [(prefix or "") + each if each else "" for each in node.output]
            del copy.input[:], copy.output[:]
            copy.input.extend(inputs)
            copy.output.extend(outputs)
            copy.name = f"{len(nodes)}"
            nodes.append(copy)
            done.update(outputs)
        return nodes, constants
