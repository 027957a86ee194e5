"""Grids tried out behind the ops that read a tensor: which one changes what they compute least.

The mean squared error of a tensor by itself misleads. Clipping hits the same few channels and samples
again and again, so that its errors add up in the next layer, while errors of rounding average out: a
range of least squared error can lose decibels at a network's output. So each grid's error is measured
after the ops that read the tensor, and after the activation functions that follow them, on real samples.
Adaptive rounding measures there for the same reason: Nagel et al. 2020 (arXiv 2004.10568), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.data import Dataset
from edgepipe.events import Emit, stage
from edgepipe.model import Model
from edgepipe.quantize.grid import Grid
from edgepipe.quantize.plan import CLIPPING, FREE, LINEAR

if TYPE_CHECKING:
    import onnx

SAMPLES = 32
"""Samples to measure on, evenly spaced; with fewer, rare large values are missed."""
_BATCH = 4
_WORTH_CHANGING = 0.8
"""Share of the first grid's error that another must not exceed: a smaller gain on some samples may be a loss
on others."""


class Candidates(msgspec.Struct, frozen=True):
    """The grids to choose from for tensors that share one.

    Attributes:
        tensors: Their names.
        grids: int8 grids, the one to fall back to first.
    """

    tensors: tuple[str, ...]
    grids: tuple[Grid, ...]


def least_harmful(
    model: Model, candidates: Sequence[Candidates], data: Dataset, emit: Emit
) -> tuple[Grid, ...]:
    """The grid of each set of tensors that changes least of what is computed from them.

    Every tensor is tried with all others in float, and all of them in one session, whose scales and zero
    points are inputs: a run for each place in the lists of grids.

    Args:
        model: Float ONNX model with one input.
        candidates: What to choose from.
        data: Samples for the model.
        emit: Where progress goes.
    """
    import onnxruntime

    tensors = [name for each in candidates for name in each.tensors]
    graph = _TrialGraph(model, tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # its rewriting takes scales that are inputs for constants, and computes something else
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(graph.payload, options, providers=["CPUExecutionProvider"])
    rounds = max((len(each.grids) for each in candidates), default=0)
    samples = data.x[:: -(-len(data) // SAMPLES)]
    fixed = model.inputs[0].shape[0]
    whole = len(samples) - len(samples) % (fixed or 1)
    samples = samples[:whole] if whole else data.x[:fixed]
    errors: list[dict[str, float]] = []
    with stage(emit, "try ranges", total=rounds * len(samples)) as running:
        for place in range(rounds):
            feeds = _grid_inputs(candidates, place)
            totals: NDArray[np.float64] = np.zeros(len(graph.outputs))
            for start in range(0, len(samples), fixed or _BATCH):
                batch = np.ascontiguousarray(samples[start : start + (fixed or _BATCH)])
                results = session.run(list(graph.outputs), {model.inputs[0].name: batch, **feeds})
                totals += [float(np.sum(each)) for each in results]
                running.advance(place * len(samples) + start + len(batch))
            errors.append(graph.relative_errors(totals))
        chosen = tuple(_choose(each, errors) for each in candidates)
        changed = sum(grid != each.grids[0] for grid, each in zip(chosen, candidates, strict=True))
        running.detail = f"{changed} of {len(candidates)} ranges clip"
    return chosen


def _grid_inputs(candidates: Sequence[Candidates], place: int) -> dict[str, NDArray[np.generic]]:
    feeds: dict[str, NDArray[np.generic]] = {}
    for each in candidates:
        grid = each.grids[min(place, len(each.grids) - 1)]
        for name in each.tensors:
            feeds[_scale(name)] = np.array(grid.scale, np.float32)
            feeds[_zero_point(name)] = np.array(grid.zero_point, np.int8)
    return feeds


def _choose(each: Candidates, errors: Sequence[Mapping[str, float]]) -> Grid:
    sums = [sum(errors[place][name] for name in each.tensors) for place in range(len(each.grids))]
    best = int(np.argmin(sums))
    return each.grids[best if sums[best] <= _WORTH_CHANGING * sums[0] else 0]


def _scale(tensor: str) -> str:
    return f"trial.scale.{tensor}"


def _zero_point(tensor: str) -> str:
    return f"trial.zero_point.{tensor}"


class _TrialGraph:
    """The float graph, and beside it each reader of each tensor again, on the quantized tensor.

    Attributes:
        payload: The ONNX file.
        outputs: What to ask of it: sums of squares.
    """

    def __init__(self, model: Model, tensors: Sequence[str]) -> None:
        from onnx import helper, numpy_helper

        proto = model.to_onnx()
        self._graph = proto.graph
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)
        proto.graph.initializer.append(numpy_helper.from_array(np.array([0, 1], np.int64), "trial.axes"))
        del proto.graph.output[:]
        self._pairs: list[tuple[str, str, str]] = []
        for tensor in tensors:
            self._try(tensor)
        self.outputs = tuple(dict.fromkeys(name for _, *pair in self._pairs for name in pair))
        proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in self.outputs)
        self.payload = proto.SerializeToString()

    def relative_errors(self, totals: NDArray[np.float64]) -> dict[str, float]:
        """Error over power of what reads each tensor, summed over its readers."""
        total = dict(zip(self.outputs, totals.tolist(), strict=True))
        found: dict[str, float] = {}
        for tensor, error, power in self._pairs:
            found[tensor] = found.get(tensor, 0.0) + total[error] / max(total[power], 1e-30)
        return found

    def _try(self, tensor: str) -> None:
        from onnx import TensorProto, helper

        scale, zero_point = _scale(tensor), _zero_point(tensor)
        self._graph.input.extend(
            [
                helper.make_tensor_value_info(scale, TensorProto.FLOAT, []),
                helper.make_tensor_value_info(zero_point, TensorProto.INT8, []),
            ]
        )
        integers = self._add("QuantizeLinear", [tensor, scale, zero_point], f"integers.{tensor}")
        real = self._add("DequantizeLinear", [integers, scale, zero_point], f"real.{tensor}")
        readers = [node for node in self._readers.get(tensor, []) if node.op_type in LINEAR | FREE | CLIPPING]
        if not readers:
            self._compare(tensor, real, tensor)
        for node in readers:
            self._compare(tensor, *self._again(node, tensor, real))

    def _again(self, node: onnx.NodeProto, tensor: str, real: str) -> tuple[str, str]:
        """A copy of `node`, and of an activation function after it: its output, and the float one."""
        output, expected = self._copy(node, tensor, real), node.output[0]
        following = self._readers.get(expected, [])
        if len(following) == 1 and following[0].op_type in CLIPPING:
            output = self._copy(following[0], expected, output)
            expected = following[0].output[0]
        return output, expected

    def _copy(self, node: onnx.NodeProto, old: str, new: str) -> str:
        copy = self._graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"trial.{len(self._graph.node)}.{node.op_type}"
        copy.input[:] = [new if name == old else name for name in node.input]
        copy.output[:] = [copy.name]
        return str(copy.name)

    def _compare(self, tensor: str, output: str, expected: str) -> None:
        power = f"trial.power.{expected}"
        if not any(each == power for *_, each in self._pairs):
            self._sum_of_squares(expected, f"power.{expected}")
        difference = self._add("Sub", [output, expected], f"difference.{output}.{tensor}")
        error = self._sum_of_squares(difference, f"error.{output}.{tensor}")
        self._pairs.append((tensor, error, power))

    def _sum_of_squares(self, tensor: str, name: str) -> str:
        square = self._add("Mul", [tensor, tensor], f"square.{name}")
        rows = self._add("Flatten", [square], f"rows.{name}")
        return self._add("ReduceSum", [rows, "trial.axes"], name, keepdims=0)

    def _add(self, op_type: str, inputs: list[str], name: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"trial.{name}"
        self._graph.node.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name
