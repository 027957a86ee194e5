"""Makes int8.tflite, int8.onnx and golden.json of this folder: the kinds of kernel that INT8 networks run on.

    python docker/selftest/make.py

Golden outputs are those of this machine's runtimes, so run it on hardware, not in an emulator.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from selftest import run_onnx, run_tflite

from edgepipe import Job
from edgepipe.workflow import compress

HERE = Path(__file__).resolve().parent
SIZE, CHANNELS, CLASSES, SAMPLES = 12, 24, 10, 4


def network(random: np.random.Generator) -> onnx.ModelProto:
    """Convolution, depthwise and pointwise convolution, addition, mean and dense layer, ReLU6 between."""
    nodes, weights = [], {}

    def layer(op: str, entry: str, leave: str, shape: tuple[int, ...], **attributes: object) -> None:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        weights[f"{leave}.w"] = random.normal(0, scale, shape).astype(np.float32)
        weights[f"{leave}.b"] = random.normal(0, 0.1, shape[0]).astype(np.float32)
        nodes.append(helper.make_node(op, [entry, f"{leave}.w", f"{leave}.b"], [leave], leave, **attributes))

    def relu6(entry: str, leave: str) -> None:
        nodes.append(helper.make_node("Clip", [entry, "zero", "six"], [leave], leave))

    weights |= {"zero": np.float32(0), "six": np.float32(6)}
    square = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    layer("Conv", "x", "conv", (CHANNELS, 3, 3, 3), **square)
    relu6("conv", "conv.relu")
    layer("Conv", "conv.relu", "depthwise", (CHANNELS, 1, 3, 3), group=CHANNELS, **square)
    relu6("depthwise", "depthwise.relu")
    layer("Conv", "depthwise.relu", "pointwise", (CHANNELS, CHANNELS, 1, 1), kernel_shape=[1, 1])
    nodes.append(helper.make_node("Add", ["conv.relu", "pointwise"], ["sum"], "sum"))
    nodes.append(helper.make_node("GlobalAveragePool", ["sum"], ["mean"], "mean"))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"], "flat"))
    layer("Gemm", "flat", "y", (CLASSES, CHANNELS), transB=1)
    graph = helper.make_graph(
        nodes,
        "selftest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    """Compresses the network, and records what it computes here."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(network(random), folder / "selftest.onnx")
        np.savez(folder / "x.npz", x=random.normal(0, 1, (64, 3, SIZE, SIZE)).astype(np.float32))
        job = Job(
            model=str(folder / "selftest.onnx"),
            target="raspberrypi4",
            data=folder / "x.npz",
            recipe="int8_fast",
            ports="integer",
        )
        compress(job, folder / "bundle")
        for format_ in ("tflite", "onnx"):
            [file] = [path for path in (folder / "bundle").rglob(f"int8.{format_}") if path.is_file()]
            shutil.copy(file, HERE / f"int8.{format_}")
    values = random.normal(0, 32, (SAMPLES, 3, SIZE, SIZE)).round().clip(-128, 127)
    samples = values.astype(np.int8)
    golden = {
        "tflite": {"inputs": samples.transpose(0, 2, 3, 1).reshape(SAMPLES, -1).tolist()},
        "onnx": {"inputs": samples.reshape(SAMPLES, -1).tolist()},
    }
    for name, run in (("tflite", run_tflite), ("onnx", run_onnx)):
        golden[name]["outputs"] = run(golden[name]["inputs"])
    (HERE / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
