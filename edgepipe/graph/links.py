"""Who makes and who takes each tensor of a graph, as a file holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx


class Links:
    """Makers and takers of a graph's tensors, and its constants; looked up once, on making it.

    Attributes:
        constants: Initializers, and what Constant nodes hold, by name.
        producer: The node that makes a tensor.
        consumers: The nodes that take it, each with the index of the input.
        inputs: What the caller gives: no initializer is among them.
        outputs: What the graph returns.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.constants = dict(initializers)
        self.producer: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
            self.producer.update((name, node) for name in node.output if name)
            for index, name in enumerate(node.input):
                self.consumers.setdefault(name, []).append((node, index))
        self.inputs = {value.name for value in graph.input} - initializers.keys()
        self.outputs = {value.name for value in graph.output}

    def takers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that take a tensor, once for each input that does."""
        return [node for node, _ in self.consumers.get(name, [])]

    def array(self, name: str) -> NDArray[Any] | None:
        """The constant of that name, also behind a Cast: narrow weights are stored so."""
        import onnx

        producer = self.producer.get(name)
        if producer is not None and producer.op_type == "Cast":
            name = producer.input[0]
        return (
            np.asarray(onnx.numpy_helper.to_array(self.constants[name])) if name in self.constants else None
        )
