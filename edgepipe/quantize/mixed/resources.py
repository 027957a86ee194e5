"""What layers spend at each width: weight bits, bytes of the file, bit operations, microseconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from edgepipe.errors import RecipeError
from edgepipe.graph import edit
from edgepipe.quantize.mixed.budget import Budget
from edgepipe.quantize.scheme import FLOAT_BITS, ActivationBits, node_name
from edgepipe.quantize.widths import INT4_BITS

if TYPE_CHECKING:
    import onnx_ir as ir


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A linear op as a budget sees it.

    Attributes:
        name: What reports call it.
        pattern: What overrides name it by, and no other layer.
        result: Name of the tensor that it puts out, which is unique in the graph.
        op: "Conv", "Gemm", ...
        weights: Number of its weights.
        macs: Multiplications and additions for one sample.
        widths: Bits that its weight may have; `FLOAT_BITS` stands for float.
        activation_bits: Bits of its activations.
    """

    name: str
    pattern: str
    result: str
    op: str
    weights: int
    macs: int
    widths: tuple[int, ...]
    activation_bits: ActivationBits = 8

    def stored_bytes(self, bits: int) -> int:
        """Bytes of its weight in the file: two to a byte up to 4 bits, else a byte each; 4 for float."""
        if bits == FLOAT_BITS:
            return 4 * self.weights
        return -(-self.weights // 2) if bits <= INT4_BITS else self.weights

    def bit_operations(self, bits: int) -> int:
        """MACs times bits of the weight times bits of the activation, for one sample."""
        return self.macs * bits * (FLOAT_BITS if bits == FLOAT_BITS else self.activation_bits)


def make_layer(node: ir.Node, pattern: str, widths: Sequence[int], activation_bits: ActivationBits) -> Layer:
    """The record of a linear op whose shapes are known, but for the batch."""
    weight = edit.array_at(node, 1)
    return Layer(
        name=node_name(node),
        pattern=pattern,
        result=str(node.outputs[0].name),
        op=node.op_type,
        weights=int(weight.size),
        macs=int(weight.size) * _positions(node),
        widths=tuple(widths),
        activation_bits=activation_bits,
    )


def _positions(node: ir.Node) -> int:
    """How many times each weight is used for one sample; sizes that are unknown count as 1."""
    place = node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0]
    sizes = [size or 1 for size in edit.sizes(place) or ()]
    return math.prod(sizes[1:-1] if node.op_type in ("Gemm", "MatMul") else sizes[2:])


def average_bits(layers: Sequence[Layer], limit: float) -> Budget:
    """At most `limit` bits a weight, averaged over all weights of all layers."""
    weights = sum(layer.weights for layer in layers)
    return Budget(
        resource="average weight bits",
        unit="bits a weight",
        amount=max(weights, 1),
        limit=math.floor(limit * weights + 1e-6),
        spending=tuple(tuple(layer.weights * bits for bits in layer.widths) for layer in layers),
    )


def size(layers: Sequence[Layer], limit: int, fixed: int) -> Budget:
    """At most `limit` bytes of the file, of which `fixed` are not weights."""
    return Budget(
        resource="size of the file",
        unit="KiB",
        amount=1024,
        limit=limit,
        spending=tuple(tuple(layer.stored_bytes(bits) for bits in layer.widths) for layer in layers),
        fixed=fixed,
    )


def bit_operations(layers: Sequence[Layer], share: float) -> Budget:
    """At most this share of the bit operations that 8-bit weights and activations need throughout."""
    plain = sum(layer.macs * 64 for layer in layers)
    return Budget(
        resource="bit operations",
        unit="of what 8 bits throughout need",
        amount=max(plain, 1),
        limit=math.floor(share * plain),
        spending=tuple(tuple(layer.bit_operations(bits) for bits in layer.widths) for layer in layers),
    )


def latency(layers: Sequence[Layer], table: Mapping[str, Mapping[int, float]], limit_us: float) -> Budget:
    """At most `limit_us` microseconds, by a table of each layer's latency at each of its widths.

    Args:
        layers: The layers.
        table: Microseconds by bits, by name of the layer.
        limit_us: The most that all layers may take together.

    Raises:
        RecipeError: The table lacks a layer, or one of its widths.
    """
    for layer in layers:
        lacking = [bits for bits in layer.widths if bits not in table.get(layer.name, {})]
        if lacking:
            raise RecipeError(
                "the table of latencies lacks a layer at some width",
                where=layer.name,
                got=f"nothing for {', '.join(map(str, lacking))} bits",
                remedy="measure it at every candidate width, or leave those widths out",
            )
    return Budget(
        resource="latency",
        unit="µs",
        amount=1000,
        limit=math.floor(1000 * limit_us),
        spending=tuple(
            tuple(round(1000 * table[layer.name][bits]) for bits in layer.widths) for layer in layers
        ),
    )


def widest_uniform(layers: Sequence[Layer], budgets: Sequence[Budget]) -> tuple[int, ...] | None:
    """The widest single width for all layers within the budgets, as options; None where none fits.

    A layer that does not have that width takes its own nearest one below, or its narrowest.
    """
    for bits in sorted({bits for layer in layers for bits in layer.widths}, reverse=True):
        chosen = tuple(_nearest_below(layer, bits) for layer in layers)
        if all(budget.spent(chosen) <= budget.limit for budget in budgets):
            return chosen
    return None


def _nearest_below(layer: Layer, bits: int) -> int:
    fitting = [each for each in layer.widths if each <= bits] or [min(layer.widths)]
    return layer.widths.index(max(fitting))
