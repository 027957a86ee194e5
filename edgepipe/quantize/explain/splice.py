"""Networks that are quantized in some layers and float in the others, made of both graphs.

Each junction takes one of five forms, so that one network answers one question: what does this layer
cost alone, what would leaving it in float or at 16 bits gain, is it the weight or the grid.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
    """Serializes a network in which each junction has its form; see `Spliced.network`."""
    return Spliced(Parts(pairing), forms, spans or {}).network(watch, outputs=outputs)


class Parts:
    """The nodes and constants of both graphs, those of the quantized one under names with a prefix."""

    def __init__(self, pairing: Pairing) -> None:
        self.pairing = pairing
        self.constants: dict[str, onnx.TensorProto] = {}
        self.producer: dict[str, tuple[onnx.NodeProto, str | None]] = {}
        for graph, prefix in ((pairing.reference.graph, ""), (pairing.quantized.graph, PREFIX)):
            for tensor in graph.initializer:
                self.constants[prefix + tensor.name] = tensor
            for node in graph.node:
                self.producer |= {prefix + name: (node, prefix) for name in node.output if name}


class Spliced:
    """A network of both graphs in which each junction has its form.

    Args:
        parts: Of both graphs.
        forms: Form of each junction, by its name; "float" for those that are not named.
        spans: Range of each junction whose form is "weight" or "wide".
    """

    def __init__(self, parts: Parts, forms: Mapping[str, Form], spans: Mapping[str, Span]) -> None:
        self.pairing = parts.pairing
        self.constants, self.producer = dict(parts.constants), dict(parts.producer)
        self.rename: dict[str, str] = {
            PREFIX + value.name: value.name for value in self.pairing.quantized.graph.input
        }
        for junction in self.pairing.junctions:
            value = self._form(junction, forms.get(junction.name, "float"), spans)
            self.rename[junction.name] = self.rename[rounded_name(junction)] = value

    @property
    def outputs(self) -> list[str]:
        """What stands for the model's outputs."""
        return [self.value_of(value.name) for value in self.pairing.reference.graph.output]

    def network(
        self,
        watch: Sequence[str] = (),
        *,
        outputs: bool = True,
        given: Mapping[str, onnx.ValueInfoProto] | None = None,
    ) -> bytes:
        """Serializes the network, or what is left of it to compute.

        Args:
            watch: More tensors to return, before the outputs: junctions by their names, which are those of
                the float graph's own computation, what `rounded_name` says, or any others.
            outputs: Whether to return the model's outputs.
            given: Tensors that are known, with their types; by default the model's inputs.

        Returns:
            An ONNX model, whose outputs are those watched, then the model's.
        """
        import onnx

        inputs = given or {value.name: value for value in self.pairing.reference.graph.input}
        wanted = [*watch, *(self.outputs if outputs else ())]
        nodes, constants, known = self.collect(wanted, set(inputs))
        proto = onnx.ModelProto()
        proto.ir_version = max(self.pairing.reference.ir_version, self.pairing.quantized.ir_version)
        proto.opset_import.extend(self.pairing.quantized.opset_import)
        domains = {each.domain for each in proto.opset_import}
        others = self.pairing.reference.opset_import
        proto.opset_import.extend(each for each in others if each.domain not in domains)
        graph = proto.graph
        graph.name = "spliced"
        graph.input.extend(inputs[name] for name in (known if given else inputs))
        graph.node.extend(nodes)
        for name in constants:
            graph.initializer.add().CopyFrom(self.constants[name])
            graph.initializer[-1].name = name
        made = {name for node in nodes for name in node.output}
        for index, name in enumerate(wanted):
            result = name if name in made else f"wanted/{index}"
            if result != name:  # wanted twice, or an input
                graph.node.append(onnx.helper.make_node("Identity", [name], [result]))
            made.discard(name)
            graph.output.append(onnx.helper.make_empty_tensor_value_info(result))
        payload: bytes = proto.SerializeToString(deterministic=True)
        return payload

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

    def collect(
        self, wanted: Sequence[str], given: Collection[str]
    ) -> tuple[list[onnx.NodeProto], list[str], list[str]]:
        """The nodes that tensors need, each after those that it reads, and names of what they take.

        Returns:
            The nodes; the constants among what they read; what of `given` they read, or is wanted itself.
        """
        nodes: list[onnx.NodeProto] = []
        constants: list[str] = []
        known: list[str] = []
        done: set[str] = set()
        stack = [(name, False) for name in reversed(wanted)]
        while stack:
            name, ready = stack.pop()
            if name in done or not name:
                continue
            if name in given or name in self.constants:
                done.add(name)
                (known if name in given else constants).append(name)
                continue
            node, prefix = self.producer[name]
            inputs = self._read(node, prefix)
            if not ready:
                stack.append((name, True))
                stack.extend((each, False) for each in reversed(inputs))
                continue
            copy = type(node)()
            copy.CopyFrom(node)
            outputs = [(prefix or "") + each if each else "" for each in node.output]
            del copy.input[:], copy.output[:]
            copy.input.extend(inputs)
            copy.output.extend(outputs)
            copy.name = f"{len(nodes)}"
            nodes.append(copy)
            done.update(outputs)
        return nodes, constants, known
