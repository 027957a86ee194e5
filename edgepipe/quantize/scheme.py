"""Which layer is quantized how: one scheme for all, and overrides for layers named by pattern."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from edgepipe.errors import RecipeError
from edgepipe.graph import edit

if TYPE_CHECKING:
    import onnx_ir as ir

WeightBits = Annotated[int, msgspec.Meta(ge=2, le=8)]
ActivationBits = Literal[8, 16]
FLOAT_BITS = 32


class Scheme(msgspec.Struct, frozen=True, kw_only=True):
    """How one layer is quantized.

    Attributes:
        weight_bits: Bits of its weight's integers.
        activation_bits: Bits of its activations' integers.
        keep_float: Whether it computes in float instead, weight and activations.
    """

    weight_bits: WeightBits = 8
    activation_bits: ActivationBits = 8
    keep_float: bool = False


class Override(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is different for some layers; of several that match a layer, the last one holds.

    Attributes:
        layers: Patterns of names as a shell's ("/head/*"): of layers, as `node_name` gives them, or where no
            layer has such a name, of what layers put out.
        weight_bits: Bits of their weights' integers; None leaves what holds for all.
        activation_bits: Bits of their activations' integers, likewise.
        keep_float: Whether they compute in float.
    """

    layers: tuple[str, ...]
    weight_bits: WeightBits | None = None
    activation_bits: ActivationBits | None = None
    keep_float: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot have been meant.

        Raises:
            ValueError: No layer is named, or layers in float are given bits.
        """
        if not self.layers:
            raise ValueError("layers names none")
        if self.keep_float and (self.weight_bits or self.activation_bits):
            raise ValueError("keep_float leaves no integers that weight_bits or activation_bits could be of")


def node_name(node: ir.Node) -> str:
    """What a layer is called in overrides, warnings and reports: its name, or that of its first output."""
    return str(node.name or node.outputs[0].name)


def assign(graph: ir.Graph, default: Scheme, overrides: Sequence[Override]) -> dict[ir.Node, Scheme]:
    """The scheme of every node of a graph.

    Args:
        graph: The graph.
        default: What holds where no override says otherwise.
        overrides: What is different, in order.

    Raises:
        RecipeError: A pattern matches no node.
    """
    schemes = dict.fromkeys(edit.nodes(graph), default)
    for override in overrides:
        for pattern in override.layers:
            matching = _matching(schemes, pattern)
            if not matching:
                raise RecipeError(
                    "a pattern names no layer of the model",
                    where="overrides of the pass that quantizes",
                    got=pattern,
                    remedy=f"its layers are {', '.join(map(node_name, list(schemes)[:8]))}, ...",
                )
            for node in matching:
                schemes[node] = Scheme(
                    weight_bits=override.weight_bits or default.weight_bits,
                    activation_bits=override.activation_bits or default.activation_bits,
                    keep_float=override.keep_float,
                )
    return schemes


def exact_patterns(graph: ir.Graph) -> dict[ir.Node, str]:
    """A pattern for each node that names it alone: its name, or where others bear that too, its output's."""
    names = {node: node_name(node) for node in edit.nodes(graph)}
    bearers = Counter(names.values())
    return {
        node: _escaped(name if bearers[name] == 1 else str(node.outputs[0].name))
        for node, name in names.items()
    }


def _escaped(name: str) -> str:
    """A pattern that only this name matches."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _matching(nodes: Iterable[ir.Node], pattern: str) -> list[ir.Node]:
    """Nodes that a pattern names. An output may be called as another node is: names of nodes come first."""
    nodes = list(nodes)
    named = [node for node in nodes if fnmatchcase(node_name(node), pattern)]
    return named or [node for node in nodes if fnmatchcase(str(node.outputs[0].name), pattern)]
