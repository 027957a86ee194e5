"""Runs each quantized op alone, on random integers, in every kernel that edgepipe's artifacts meet.

    python benchmarks/kernels/run.py

writes results.md beside this file: how often, and by how many steps of the output, each kernel differs from
what the model's QuantizeLinear and DequantizeLinear say in float arithmetic.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgepipe.convert import ort, tflite
from edgepipe.model import Model, onnx_model
from edgepipe.runtime import from_port, to_port

HERE = Path(__file__).parent
TRIALS = 20
OPSET = 18
UNIT = (1 / 256, -128)
TANGENT = (1 / 128, 0)
Array = NDArray[Any]


class Case(NamedTuple):
    """An op with its data.

    Attributes:
        name: For the table.
        op: ONNX's name of it.
        shapes: Of each input that varies.
        weight: Shape of an int8 weight, the output channels first; () for none.
        constants: Further inputs.
        attributes: Of the node.
        grid: Scale and zero point of the output where they are fixed.
        spread: Width of the output, in steps of the first input.
        then: An activation function right behind.
        same_grid: Whether the output is on the grid of the input.
    """

    name: str
    op: str
    shapes: tuple[tuple[int, ...], ...]
    weight: tuple[int, ...] = ()
    constants: tuple[Array, ...] = ()
    attributes: dict[str, Any] = {}  # noqa: RUF012  never changed
    grid: tuple[float, int] | None = None
    spread: float = 1.0
    then: str = ""
    same_grid: bool = False


MAP = (1, 16, 12, 12)
PADS = {"pads": [1] * 4}
HALVED = {"kernel_shape": [2, 2], "strides": [2, 2]}
CASES = (
    Case("Conv 3x3", "Conv", (MAP,), (16, 16, 3, 3), attributes=PADS, spread=6.0),
    Case("Conv 3x3, Relu", "Conv", (MAP,), (16, 16, 3, 3), attributes=PADS, spread=3.0, then="Relu"),
    Case(
        "Conv 3x3, stride 2, pads that are not SAME",
        "Conv",
        (MAP,),
        (16, 16, 3, 3),
        attributes={**PADS, "strides": [2, 2]},
        spread=6.0,
    ),
    Case("Conv 1x1, 256 channels", "Conv", ((1, 256, 6, 6),), (64, 256, 1, 1), spread=8.0),
    Case("Conv 3x3, depthwise", "Conv", (MAP,), (16, 1, 3, 3), attributes={**PADS, "group": 16}, spread=2.0),
    Case("Gemm", "Gemm", ((1, 256),), (64, 256), attributes={"transB": 1}, spread=8.0),
    Case("Add", "Add", (MAP, MAP), spread=2.0),
    Case("Add, Relu", "Add", (MAP, MAP), spread=1.0, then="Relu"),
    Case("Mul", "Mul", (MAP, MAP), spread=1.0),
    Case("Concat, three grids", "Concat", (MAP, MAP), attributes={"axis": 1}, spread=1.3),
    Case("AveragePool 2x2", "AveragePool", (MAP,), attributes=HALVED, same_grid=True),
    Case(
        "AveragePool 3x3, pads left out",
        "AveragePool",
        (MAP,),
        attributes={"kernel_shape": [3, 3], **PADS},
        same_grid=True,
    ),
    Case("AveragePool 2x2, another grid", "AveragePool", (MAP,), attributes=HALVED, spread=0.7),
    Case("GlobalAveragePool", "GlobalAveragePool", (MAP,), spread=0.2),
    Case("MaxPool 2x2", "MaxPool", (MAP,), attributes=HALVED, same_grid=True),
    Case("Softmax, 10 classes", "Softmax", ((1, 10),), attributes={"axis": -1}, grid=UNIT),
    Case("Sigmoid", "Sigmoid", (MAP,), grid=UNIT),
    Case("Tanh", "Tanh", (MAP,), grid=TANGENT),
    Case("HardSwish", "HardSwish", (MAP,), spread=0.8),
    Case("LeakyRelu", "LeakyRelu", (MAP,), attributes={"alpha": 0.1}, spread=0.9),
    Case("Relu on another grid", "Relu", (MAP,), spread=0.5),
)


class _Graph:
    """A QDQ graph that is being put together, with float ports."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, array: Array) -> str:
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def pair(self, name: str, grid: tuple[float, int], output: str = "") -> str:
        scale = self.constant(f"{name}_s", np.array(grid[0], np.float32))
        zero = self.constant(f"{name}_z", np.array(grid[1], np.int8))
        integers = self.node("QuantizeLinear", [name, scale, zero], f"{name}_q")
        return self.node("DequantizeLinear", [integers, scale, zero], output or f"{name}_d")

    def weight(self, name: str, data: Array, scales: Array) -> str:
        parts = [data, scales, np.zeros(scales.shape, data.dtype)]
        names = [self.constant(f"{name}{index}", part) for index, part in enumerate(parts)]
        return self.node("DequantizeLinear", names, f"{name}_d", axis=0)


def build(case: Case, rng: np.random.Generator) -> tuple[Model, list[Array]]:
    """The op between Q and DQ on random grids, and samples for it that use the grids in full."""
    graph, taken, feeds, scale = _Graph(), list[str](), list[Array](), 1.0
    for index, shape in enumerate(case.shapes):
        grid = (float(np.float32(rng.uniform(0.02, 0.06))), int(rng.integers(-30, 30)))
        scale = scale if index else grid[0]
        first = grid if not index else first  # noqa: F821  bound by the first round
        taken.append(graph.pair(f"x{index}", grid))
        feeds.append(((rng.integers(-128, 128, shape) - grid[1]) * grid[0]).astype(np.float32))
    if case.weight:
        scales = rng.uniform(0.5, 1.5, case.weight[0]).astype(np.float32) / np.float32(
            127 * np.sqrt(np.prod(case.weight[1:])) / 2
        )
        taken.append(graph.weight("w", rng.integers(-127, 128, case.weight).astype(np.int8), scales))
        bias = rng.integers(-20000, 20000, case.weight[0]).astype(np.int32)
        taken.append(graph.weight("b", bias, np.float32(scale) * scales))
    made = graph.node(case.op, taken, "made", **case.attributes)
    made = graph.node(case.then, [made], "clipped") if case.then else made
    out = (float(np.float32(scale * case.spread * rng.uniform(0.8, 1.2))), -128 if case.then else 3)
    graph.pair(made, case.grid or (first if case.same_grid else out), "y")
    proto = helper.make_graph(
        graph.nodes, "one",
        [helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, shape)
         for index, shape in enumerate(case.shapes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        graph.initializers,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET)]
    return onnx_model(helper.make_model(proto, opset_imports=opsets, ir_version=8), "one"), feeds


def integers(real: Array, grid: tuple[float, int]) -> Array:
    """Steps of the output's grid, from its reals."""
    return np.rint(real.astype(np.float64) / grid[0]).astype(np.int64) + grid[1]


def with_onnx_runtime(payload: bytes, feeds: list[Array], *, optimized: bool) -> Array:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(payload, options, ["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return np.asarray(session.run(None, dict(zip(names, feeds, strict=True)))[0])


def with_litert(model: Model, feeds: list[Array], resolver: str) -> Array:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    emission = tflite.emit(model)
    interpreter = Interpreter(
        model_content=emission.payload,
        num_threads=1,
        experimental_op_resolver_type=getattr(OpResolverType, resolver),
    )
    interpreter.allocate_tensors()
    for detail, port, feed in zip(interpreter.get_input_details(), emission.inputs, feeds, strict=True):
        interpreter.set_tensor(detail["index"], to_port(feed, port))
    interpreter.invoke()
    result = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return from_port(result, emission.outputs[0])


Kernel = Callable[[Model, list[Array]], Array]
KERNELS: dict[str, Kernel] = {
    "LiteRT, XNNPACK": lambda model, feeds: with_litert(model, feeds, "AUTO"),
    "LiteRT, built in": lambda model, feeds: with_litert(model, feeds, "BUILTIN_WITHOUT_DEFAULT_DELEGATES"),
    "LiteRT, reference": lambda model, feeds: with_litert(model, feeds, "BUILTIN_REF"),
    "ONNX Runtime, uint8": lambda model, feeds: with_onnx_runtime(
        ort.emit(model, activation="uint8").payload, feeds, optimized=True
    ),
    "ONNX Runtime, int8": lambda model, feeds: with_onnx_runtime(
        ort.emit(model, activation="int8").payload, feeds, optimized=True
    ),
}


class Difference(NamedTuple):
    """Share of outputs that differ, and by how many steps at most."""

    share: float
    worst: int

    def __str__(self) -> str:
        return "equal" if not self.worst else f"{100 * self.share:.2g} %, {self.worst}"


def compare(case: Case) -> Iterator[Difference]:
    """Each kernel beside the float arithmetic of Q and DQ, then XNNPACK beside ONNX Runtime on uint8."""
    rng = np.random.default_rng(17)
    found: dict[str, list[Array]] = {name: [] for name in (*KERNELS, "float")}
    for _ in range(TRIALS):
        model, feeds = build(case, rng)
        grid = output_grid(model)
        found["float"].append(integers(with_onnx_runtime(model.payload, feeds, optimized=False), grid))
        for name, kernel in KERNELS.items():
            found[name].append(integers(kernel(model, feeds), grid))
    columns = {name: np.concatenate([each.ravel() for each in arrays]) for name, arrays in found.items()}
    if np.ptp(columns["float"]) < 64:
        raise ValueError(f"{case.name} uses too little of its output's grid to tell anything")
    for name in KERNELS:
        yield difference(columns[name], columns["float"])
    yield difference(columns["LiteRT, XNNPACK"], columns["ONNX Runtime, uint8"])


def output_grid(model: Model) -> tuple[float, int]:
    graph = model.to_onnx().graph
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    last = next(node for node in graph.node if "y" in node.output)
    return float(known[last.input[1]]), int(known[last.input[2]])


def difference(one: Array, other: Array) -> Difference:
    off = np.abs(one - other)
    return Difference(float((off > 0).mean()), int(off.max()))


def main() -> None:
    columns = [*KERNELS, "XNNPACK and ONNX Runtime, uint8"]
    rows = ["| op | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for case in CASES:
        rows.append(f"| {case.name} | " + " | ".join(map(str, compare(case))) + " |")
        print(rows[-1], flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("ai-edge-litert", "onnxruntime", "onnx"))
    heading = (
        f"Share of outputs that differ from the float arithmetic of Q and DQ, and the greatest difference in "
        f"steps; the last column sets the two runtimes beside each other. {TRIALS} random nets an op, "
        f"{packages}, {platform.machine()}."
    )
    (HERE / "results.md").write_text("\n".join(["# Kernels beside each other", "", heading, "", *rows, ""]))


if __name__ == "__main__":
    main()
