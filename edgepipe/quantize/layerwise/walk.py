"""Runs a network from one linear op to the next over all samples, with the live tensors alone in memory.

Two such walks side by side, the float network and the quantized one, show what each linear op gets and
gives in both, while the weights of the quantized one are still being decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Batches = list[NDArray[np.float32]]


class _Stretch(msgspec.Struct, frozen=True):
    """Nodes that run together, with what they take from before and leave for later."""

    nodes: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dying: tuple[str, ...]


class Walk:
    """One network on its way through the samples.

    `advance` and `compute` take turns, once for each linear op.

    Args:
        proto: The network, with one input.
        results: Names of the outputs of its linear ops, in order of computation.
        batches: Samples for the input.
    """

    def __init__(self, proto: onnx.ModelProto, results: Sequence[str], batches: Batches) -> None:
        self._results = tuple(results)
        self._opsets = list(proto.opset_import)
        self._ir_version = proto.ir_version
        self._constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._types = _types(proto.graph)
        self._stretches = _cut(proto.graph, set(results), set(self._constants))
        self._values: dict[str, list[Any]] = {proto.graph.input[0].name: list(batches)}
        self._count = len(batches)
        self._next = 0

    def advance(self) -> Batches:
        """Runs up to the next linear op; gives what it takes, one array a batch."""
        while not self._at_linear():
            self._run(self._stretches[self._next], {})
            self._next += 1
        return self._values[self._stretches[self._next].nodes[0].input[0]]

    def compute(
        self, weight: NDArray[np.float32] | None = None, bias: NDArray[np.float32] | None = None
    ) -> Batches:
        """Runs the linear op, with other constants if any are given; gives its output, one array a batch.

        The arrays are those that the walk goes on with: what is done to them in place, it sees.
        """
        import onnx
        from onnx import numpy_helper

        stretch = self._stretches[self._next]
        constants = {}
        if weight is not None:
            node = onnx.NodeProto()
            node.CopyFrom(stretch.nodes[0])
            constants[node.input[1]] = numpy_helper.from_array(weight, node.input[1])
            del node.input[2:]
            if bias is not None:
                node.input.append(f"{node.output[0]}.walk.bias")
                constants[node.input[2]] = numpy_helper.from_array(bias, node.input[2])
            stretch = msgspec.structs.replace(stretch, nodes=(node,))
        self._run(stretch, constants)
        self._next += 1
        return self._values[stretch.nodes[0].output[0]]

    def _at_linear(self) -> bool:
        nodes = self._stretches[self._next].nodes
        return len(nodes) == 1 and nodes[0].output[0] in self._results

    def _run(self, stretch: _Stretch, constants: dict[str, Any]) -> None:
        session = self._session(stretch, constants)
        made: dict[str, list[Any]] = {name: [] for name in stretch.outputs}
        for index in range(self._count):
            feed = {name: self._values[name][index] for name in stretch.inputs}
            for name, value in zip(stretch.outputs, session.run(list(stretch.outputs), feed), strict=True):
                made[name].append(value)
            for name in stretch.dying:
                self._values[name][index] = None
        for name in stretch.dying:
            del self._values[name]
        self._values.update(made)

    def _session(self, stretch: _Stretch, constants: dict[str, Any]) -> onnxruntime.InferenceSession:
        import onnx
        import onnxruntime

        used = dict.fromkeys(name for node in stretch.nodes for name in _reads(node))
        known = {**self._constants, **constants}
        held = [known[name] for name in used if name in known]
        graph = onnx.helper.make_graph(
            stretch.nodes,
            "stretch",
            [self._type_of(name) for name in stretch.inputs],
            [onnx.helper.make_empty_tensor_value_info(name) for name in stretch.outputs],
            held,
        )
        model = onnx.helper.make_model(graph, opset_imports=self._opsets, ir_version=self._ir_version)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False  # what is let go of goes back to the system
        options.intra_op_num_threads = 1  # two walks run side by side, and sums keep their order
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def _type_of(self, name: str) -> onnx.ValueInfoProto:
        """The declared type of a tensor, or that of its values where shape inference knows none."""
        import onnx

        if name in self._types:
            return self._types[name]
        dtype = onnx.helper.np_dtype_to_tensor_dtype(self._values[name][0].dtype)
        return onnx.helper.make_tensor_value_info(name, dtype, None)


def _types(graph: onnx.GraphProto) -> dict[str, onnx.ValueInfoProto]:
    return {value.name: value for value in [*graph.value_info, *graph.input, *graph.output]}


def _cut(graph: onnx.GraphProto, results: set[str], constants: set[str]) -> list[_Stretch]:
    """The nodes in stretches that end before and after each linear op; those that none reads are left out."""
    runs: list[list[Any]] = [[]]
    for node in _leading_to(graph, results):
        if node.output[0] in results:
            runs += [[node], []]
        else:
            runs[-1].append(node)
    runs = [run for run in runs if run]
    last_read = {name: index for index, run in enumerate(runs) for node in run for name in _reads(node)}
    stretches = []
    for index, run in enumerate(runs):
        made = {name for node in run for name in node.output if name}
        read = dict.fromkeys(name for node in run for name in _reads(node))
        taken = tuple(name for name in read if name not in made and name not in constants)
        later = tuple(
            name for node in run for name in node.output if last_read.get(name, -1) > index or name in results
        )
        dying = tuple(name for name in taken if last_read[name] == index)
        stretches.append(_Stretch(tuple(run), taken, later, dying))
    return stretches


def _leading_to(graph: onnx.GraphProto, results: set[str]) -> list[onnx.NodeProto]:
    """The nodes that these tensors depend on, in order: what only outputs read may stand anywhere."""
    needed = set(results)
    found = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(_reads(node))
            found.append(node)
    return found[::-1]


def _reads(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads, those in its inner graphs included."""
    inner = [
        name
        for attribute in node.attribute
        for graph in [attribute.g, *attribute.graphs]
        for child in graph.node
        for name in _reads(child)
    ]
    return [name for name in [*node.input, *inner] if name]
