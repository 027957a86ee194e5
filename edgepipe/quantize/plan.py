"""What to quantize: which nodes, which tensors, and whose grid is known beforehand.

The rules are those of integer kernels, TFLite's above all, since its graph holds no float op at all:
pools and layout changes keep their input's grid, concatenation wants one grid for all its inputs, Softmax
and its like have a grid of their own, an activation function right after a linear op, a sum, a product or
an average is part of that op, and everything else chooses its output's grid freely.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from edgepipe.graph import edit
from edgepipe.graph.gelu import gelu_chains
from edgepipe.graph.moving import JOINING, MOVING
from edgepipe.quantize.grid import LOG_PROBABILITY, PROBABILITY, TANGENT, UNIT_16, Grid
from edgepipe.quantize.scheme import ActivationBits, Scheme

if TYPE_CHECKING:
    import onnx_ir as ir

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Ops with a weight."""
KEEPING = MOVING | {"AveragePool", "Resize"}  # means, which kernels write on the grid of their input
"""Ops whose outputs are on the grid of their inputs."""
FREE = frozenset({
    "Add", "Elu", "GlobalAveragePool", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "PRelu", "ReduceMean",
    "ReduceSum", "Sub",
})  # fmt: skip
"""Ops whose output has a grid of its own."""
FIXED = {"Softmax": PROBABILITY, "Sigmoid": PROBABILITY, "LogSoftmax": LOG_PROBABILITY, "Tanh": TANGENT}
"""Ops whose output's range is known: grids of the TFLite 8-bit quantization specification."""
FIXED_16 = {"Softmax": UNIT_16, "Sigmoid": UNIT_16, "Tanh": UNIT_16}
"""The same for 16 bits, as TFLite's kernels have them."""
CLIPPING = frozenset({"Relu", "Clip"})
"""Activation functions that the op before them takes in."""
_TAKES_CLIPPING = LINEAR | {"Add", "Sub", "Mul", "AveragePool"}
_ONE_DATA_INPUT = KEEPING - JOINING
"""Ops whose inputs after the first are shapes, axes and the like."""


class Plan(msgspec.Struct, frozen=True):
    """What to quantize in a graph. Values and nodes are those of the graph that it was made for.

    Attributes:
        schemes: How each node of the graph is to be quantized.
        linears: Ops with a constant weight.
        tensors: Activations that get a grid, in order of computation.
        bits: Width of the integers of each.
        fixed: Those whose grid is known beforehand.
        clipped: Activation functions that belong to the op before them.
        keeping: Ops whose inputs must be on their output's grid.
        crossings: Identities that only carry a tensor to another width.
        operands: Constants that take part in arithmetic, as (node, index of the input).
        left: Nodes that no integer kernel is known for; they compute in float. Those that a scheme
            keeps in float are not among them.
    """

    schemes: Mapping[ir.Node, Scheme]
    linears: tuple[ir.Node, ...]
    tensors: tuple[ir.Value, ...]
    bits: Mapping[ir.Value, ActivationBits]
    fixed: dict[ir.Value, Grid]
    clipped: tuple[ir.Node, ...]
    keeping: tuple[ir.Node, ...]
    crossings: tuple[ir.Node, ...]
    operands: tuple[tuple[ir.Node, int], ...]
    left: tuple[ir.Node, ...]


def make_plan(graph: ir.Graph, schemes: Mapping[ir.Node, Scheme], *, symmetric: bool) -> Plan:
    """Decides what to quantize in `graph`.

    Args:
        graph: A simplified float graph.
        schemes: How each of its nodes is to be quantized, as `widths.settle` leaves them.
        symmetric: Whether every zero point must be 0, which leaves no room for the fixed grids.
    """
    quantized, left = [], []
    inside = gelu_chains(graph)
    for node in edit.nodes(graph):
        if schemes[node].keep_float or node in inside:
            continue
        if is_quantizable(node):
            quantized.append(node)
        elif any(_is_float(value) for value in node.outputs):
            left.append(node)
    whole = set(quantized)
    clipped = [
        node
        for node in quantized
        if node.op_type in CLIPPING and is_clip_of_linear(node) and _producer(node) in whole
    ]
    inner = {node.inputs[0] for node in clipped}
    tensors = _tensors(graph, quantized, inner)
    keeping = [
        node
        for node in quantized
        if node.op_type in KEEPING and _keeps_width(node, schemes) and node.outputs[0] not in inner
    ]
    fixed = {} if symmetric else _fixed_grids(quantized, set(keeping), schemes)
    return Plan(
        schemes=schemes,
        linears=tuple(
            node for node in quantized if node.op_type in LINEAR and edit.constant_input(node, 1) is not None
        ),
        tensors=tuple(tensors),
        bits={value: width(value, schemes) for value in tensors},
        fixed=fixed,
        clipped=tuple(clipped),
        keeping=tuple(keeping),
        crossings=tuple(
            node for node in quantized if node.op_type == "Identity" and not _keeps_width(node, schemes)
        ),
        operands=tuple((node, index) for node in quantized for index in _operand_indices(node)),
        left=tuple(left),
    )


def activations(node: ir.Node) -> list[ir.Value]:
    """Inputs of a quantized node that are float and vary with the sample."""
    inputs = node.inputs[:1] if node.op_type in _ONE_DATA_INPUT | CLIPPING else node.inputs
    return [
        value for value in inputs if value is not None and _is_float(value) and edit.constant(value) is None
    ]


def _producer(node: ir.Node) -> ir.Node | None:
    source = node.inputs[0]
    return None if source is None else source.producer()


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.name == "FLOAT"


def is_quantizable(node: ir.Node) -> bool:
    """Whether integer kernels are known for an op as it stands in its graph."""
    known = LINEAR | KEEPING | FREE | FIXED.keys() | CLIPPING
    if node.op_type not in known or not activations(node) or not all(map(_is_float, node.outputs)):
        return False
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return _has_constant_weight(node)
    if node.op_type == "Clip":
        return all(value is None or edit.constant(value) is not None for value in node.inputs[1:])
    return True


def _has_constant_weight(node: ir.Node) -> bool:
    weight, bias = edit.constant_input(node, 1), edit.constant_input(node, 2)
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    plain = edit.real(node, "alpha", 1.0) == edit.real(node, "beta", 1.0) == 1.0 and not edit.integer(
        node, "transA", 0
    )
    return weight is not None and plain and (not has_bias or (bias is not None and bias.ndim == 1))


def is_clip_of_linear(node: ir.Node) -> bool:
    """Whether a Relu or Clip is the only reader of an op that takes activation functions in."""
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    if source is None or producer is None or producer.op_type not in _TAKES_CLIPPING:
        return False
    if producer.op_type == "AveragePool" and not _averages_alike(producer):
        return False
    return len(source.uses()) == 1 and not source.is_graph_output()


def _averages_alike(pool: ir.Node) -> bool:
    """Whether every output is a mean of equally many elements: TFLite rounds others on their input's grid."""
    if edit.integer(pool, "ceil_mode", 0):  # the last window may reach beyond what there is
        return False
    padded = any(edit.ints(pool, "pads")) or edit.text(pool, "auto_pad", "NOTSET").startswith("SAME")
    return not padded or bool(edit.integer(pool, "count_include_pad", 0))


def holder(value: ir.Value, grids: Mapping[ir.Value, Grid]) -> ir.Value | None:
    """What holds a result on a grid: the value, or the output of the activation function behind it."""
    if value in grids:
        return value
    readers = list(value.consumers())
    if len(readers) == 1 and readers[0].outputs[0] in grids:
        return readers[0].outputs[0]
    return None


def width(value: ir.Value, schemes: Mapping[ir.Node, Scheme]) -> ActivationBits:
    """Bits of a tensor's integers: those of the op that makes it, else the most that a reader wants."""
    producer = value.producer()
    if producer is not None and _is_integer(producer, schemes):
        return schemes[producer].activation_bits
    wanted = [schemes[node].activation_bits for node in value.consumers() if _is_integer(node, schemes)]
    return max(wanted, default=8)


def _is_integer(node: ir.Node, schemes: Mapping[ir.Node, Scheme]) -> bool:
    return node in schemes and not schemes[node].keep_float and is_quantizable(node)


def _keeps_width(node: ir.Node, schemes: Mapping[ir.Node, Scheme]) -> bool:
    bits = schemes[node].activation_bits
    return all(width(value, schemes) == bits for value in activations(node))


def _operand_indices(node: ir.Node) -> list[int]:
    """Inputs that are float constants and enter arithmetic, other than a linear op's weight and bias."""
    if node.op_type in _ONE_DATA_INPUT | CLIPPING:
        return []
    first = {"Conv": 3, "ConvTranspose": 3, "Gemm": 3, "MatMul": 2}.get(node.op_type, 0)
    if node.op_type == "MatMul" and edit.constant_input(node, 0) is not None:
        return [0]
    inputs = list(enumerate(node.inputs))[first:]
    return [
        index
        for index, value in inputs
        if value is not None and _is_float(value) and edit.constant(value) is not None
    ]


def _tensors(graph: ir.Graph, quantized: list[ir.Node], inner: set[ir.Value | None]) -> list[ir.Value]:
    found: dict[ir.Value, None] = {}
    touched = set()
    for node in quantized:
        touched.update(activations(node))
        touched.update(node.outputs)
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value in touched and value not in inner and _is_float(value):
            found[value] = None
    return list(found)


def _fixed_grids(
    quantized: list[ir.Node], keeping: set[ir.Node], schemes: Mapping[ir.Node, Scheme]
) -> dict[ir.Value, Grid]:
    """Grids known beforehand: of Softmax and its like, and of what only moves their output around."""
    fixed = {}
    for node in quantized:
        known = FIXED if schemes[node].activation_bits == 8 else FIXED_16
        if node.op_type in known:
            fixed[node.outputs[0]] = known[node.op_type]
        elif node in keeping:
            grids = {fixed.get(value) for value in activations(node)}
            grid = grids.pop()
            if not grids and grid is not None and _holds_constants(grid, node):
                fixed.update(dict.fromkeys(node.outputs, grid))
    return fixed


def _holds_constants(grid: Grid, node: ir.Node) -> bool:
    """Whether the constants that an op puts among its inputs' elements lie on the grid too."""
    indices = [2] if node.op_type == "Pad" else _operand_indices(node)
    for array in (edit.constant_input(node, index) for index in indices):
        if array is not None and array.size and not (grid.low <= array.min() and array.max() <= grid.high):
            return False
    return True
