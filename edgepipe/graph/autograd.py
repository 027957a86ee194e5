"""Derivatives of ONNX graphs: PyTorch runs the nodes, one function an op, and differentiates what it ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgepipe.errors import MissingExtra, UnsupportedOp
from edgepipe.graph import edit
from edgepipe.model import Model

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch


class TorchGraph:
    """A float ONNX graph that PyTorch executes.

    Attributes:
        constants: What its nodes read besides activations, as tensors by name. Float ones are its
            parameters: set `requires_grad` on a tensor, or give another in its place when calling.
    """

    def __init__(self, graph: ir.Graph) -> None:
        import torch

        from edgepipe.graph.torch_ops import OPS

        self._nodes = list(graph)
        missing = sorted(
            {
                node.op_type
                for node in self._nodes
                if node.domain not in ("", "ai.onnx") or node.op_type not in OPS
            }
        )
        if missing:
            raise UnsupportedOp(
                "PyTorch has no counterpart of an op of the model, so no gradient of it",
                where=str(graph.name),
                got=", ".join(missing),
                remedy='take sensitivity = "sqnr", which needs no gradients',
            )
        self._ops = OPS
        self._outputs = [str(value.name) for value in graph.outputs]
        self.constants: dict[str, torch.Tensor] = {
            str(name): torch.from_numpy(edit.constant(value).copy())  # type: ignore[union-attr]
            for name, value in graph.initializers.items()
            if edit.constant(value) is not None
        }
        self._last_use = {
            str(value.name): place
            for place, node in enumerate(self._nodes)
            for value in node.inputs
            if value is not None
        }

    def __call__(
        self,
        inputs: Mapping[str, torch.Tensor],
        *,
        parameters: Mapping[str, torch.Tensor] | None = None,
        watch: Sequence[str] = (),
    ) -> dict[str, torch.Tensor]:
        """Runs the graph.

        Args:
            inputs: A tensor for each of its inputs, by name.
            parameters: Tensors to take in place of some of its constants, by name.
            watch: Names of activations wanted besides the outputs.

        Returns:
            The graph's outputs and what was watched, by name; derivatives flow through them where
            gradients are enabled.

        Raises:
            UnsupportedOp: A node is in a form that is not covered.
        """
        values: dict[str, torch.Tensor] = {**self.constants, **(parameters or {}), **inputs}
        kept = {*self._outputs, *watch, *self.constants}
        for place, node in enumerate(self._nodes):
            arguments = [None if value is None else values[str(value.name)] for value in node.inputs]
            results = self._run(node, arguments)
            values.update(
                (str(value.name), result) for value, result in zip(node.outputs, results, strict=False)
            )
            for value in node.inputs:
                name = "" if value is None else str(value.name)
                if self._last_use.get(name) == place and name not in kept:
                    values.pop(name, None)
        return {name: values[name] for name in (*self._outputs, *watch)}

    def _run(self, node: ir.Node, arguments: list[Any]) -> tuple[torch.Tensor, ...]:
        from edgepipe.graph.torch_windows import Uncovered

        try:
            result = self._ops[node.op_type](node, *arguments)
        except Uncovered as error:
            raise UnsupportedOp(
                f"a form of {node.op_type} that PyTorch has no counterpart of, so no gradient of it",
                where=str(node.name or node.outputs[0].name),
                got=str(error),
                remedy='take sensitivity = "sqnr", which needs no gradients',
            ) from error
        return result if isinstance(result, tuple) else (result,)


def to_torch(model: Model) -> TorchGraph:
    """`model`, a float ONNX model of opset 13 or later, as a graph that PyTorch runs and differentiates.

    Raises:
        MissingExtra: PyTorch is not installed.
        UnsupportedOp: The model holds an op that PyTorch has no counterpart of here.
    """
    try:
        import torch  # noqa: F401 - asked for here, where its absence can be explained
    except ImportError as error:
        raise MissingExtra(
            "gradients need PyTorch, which is not installed",
            remedy="pip install 'edgepipe[torch]', or take sensitivity = \"sqnr\", which needs no gradients",
        ) from error
    return TorchGraph(edit.open_graph(model).graph)
