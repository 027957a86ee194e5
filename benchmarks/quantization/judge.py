"""The one judge of every tool's artifacts: same code, same runtimes, same samples; answers in a JSON line.

    judge.py predict REQUEST    outputs on the evaluation samples, kept as .npy, with what they are worth
    judge.py rank REQUEST       which artifacts of a model are within noise of the first
    judge.py against REQUEST    one artifact of a model compared with each of the others
    judge.py floor REQUEST      seconds that the bare forward passes over the calibration samples take
    judge.py latency REQUEST    latency of all artifacts of a format and of the float model, in turns

Runs in edgepipe's environment. Sessions have the runtimes' default optimizations.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepipe import evaluate
from edgepipe.bundle import Port
from edgepipe.runtime import from_port, to_port

FLOOR_BATCHES = (1, 16)
"""Batch sizes that the bare forward passes are tried with; the faster one counts."""
WARM_UP, TURNS, TIMED, TIMED_FOR_NS = 3, 31, 3, 30_000_000
"""Calls of an artifact before any counts; then its turns, each at least so many calls and so long."""
RESAMPLES = 2000
LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
UNCHANGING = {
    "Clip",
    "Flatten",
    "MaxPool",
    "Pad",
    "Relu",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
"""Ops that leave numbers on a grid there."""
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def predict(request: dict[str, Any]) -> dict[str, Any]:
    """Outputs of one artifact on the evaluation samples, compared with the float model's."""
    samples = np.load(request["evaluation"])
    x, y = samples["x"], samples["y"]
    run, batch = open_artifact(Path(request["path"]), request["format"], request["tflite_input_axes"], 0)
    outputs = np.concatenate([run(x[i : i + batch]) for i in range(0, len(x), batch)])
    np.save(request["outputs"], outputs)
    answer: dict[str, Any] = {"size_bytes": Path(request["path"]).stat().st_size}
    if request["format"] == "onnx" and request["reference"]:
        answer["float_layers"] = float_layers(Path(request["path"]))
    reference = np.load(request["reference"]) if request["reference"] else outputs
    answer["not_finite"] = int(np.count_nonzero(~np.isfinite(outputs)))
    answer["sqnr_db"] = None if answer["not_finite"] else evaluate.sqnr_db(reference, outputs)
    comparison = evaluate.compare(reference.argmax(1), outputs.argmax(1), y)
    assert comparison.accuracy is not None
    assert comparison.reference_accuracy is not None
    answer["accuracy"] = comparison.accuracy.value
    answer["lost_points"] = 100 * (comparison.reference_accuracy.value - comparison.accuracy.value)
    answer["agreement"] = list(_plain(comparison.agreement))
    return answer


def float_layers(path: Path) -> int:
    """Convolutions and matrix products of an ONNX graph whose input was never quantized.

    Weights say nothing: some tools write rounded ones as float numbers.
    """
    import onnx

    graph = onnx.load(str(path)).graph
    producer = {name: node for node in graph.node for name in node.output}

    def is_quantized(name: str) -> bool:
        node = producer.get(name)
        if node is None or node.op_type not in UNCHANGING:
            return node is not None and node.op_type == "DequantizeLinear"
        return is_quantized(node.input[0])

    return sum(node.op_type in LINEAR and not is_quantized(node.input[0]) for node in graph.node)


def rank(request: dict[str, Any]) -> dict[str, Any]:
    """For each artifact: is it within noise of the first in agreement, in SQNR?

    First can only be what computes all layers with integers: `partly_float` names the others.
    Agreement by McNemar's exact test of both artifacts' samples that agree with float; SQNR by a paired
    bootstrap over samples of the difference in dB. Both at 95 %.
    """
    reference = np.load(request["reference"])
    named = reference.argmax(1)
    outputs = {key: np.load(path) for key, path in request["outputs"].items()}
    agrees = {key: output.argmax(1) == named for key, output in outputs.items()}
    noise = {key: _noise(output, reference) for key, output in outputs.items()}
    able = [key for key in outputs if key not in request.get("partly_float", ())] or list(outputs)
    first_agreement = max(able, key=lambda key: (agrees[key].sum(), -noise[key].sum()))
    first_sqnr = min(able, key=lambda key: float(noise[key].sum()))
    ranks = {}
    for key in outputs:
        interval = _ahead_db(noise[key], noise[first_sqnr])
        ranks[key] = {
            "first_in_agreement": key == first_agreement,
            "agreement_p_value": _p_value(agrees[first_agreement], agrees[key]),
            "first_in_sqnr": key == first_sqnr,
            "sqnr_behind_db": interval and [-interval[1], -interval[0]],
        }
    return ranks


def against(request: dict[str, Any]) -> dict[str, Any]:
    """The artifact `own` compared with each other one, on the same samples.

    `p_value` of McNemar's exact test on agreement with float; `ahead_db` the other's lead in SQNR as a 95 %
    interval of the paired bootstrap, None where outputs are not finite.
    """
    reference = np.load(request["reference"])
    outputs = {key: np.load(path) for key, path in request["outputs"].items()}
    agrees = {key: output.argmax(1) == reference.argmax(1) for key, output in outputs.items()}
    noise = {key: _noise(output, reference) for key, output in outputs.items()}
    own = request["own"]
    return {
        key: {"p_value": _p_value(agrees[own], agrees[key]), "ahead_db": _ahead_db(noise[key], noise[own])}
        for key in outputs
        if key != own
    }


def _noise(output: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared error of each sample's scores."""
    return np.nan_to_num(np.square(output.astype(np.float64) - reference).sum(1), nan=np.inf)


def _p_value(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    ahead, behind = np.count_nonzero(first & ~second), np.count_nonzero(second & ~first)
    return evaluate.mcnemar(int(ahead), int(behind))


def _ahead_db(noise: NDArray[np.float64], other: NDArray[np.float64]) -> list[float] | None:
    """How far the first's SQNR lies above the second's: 95 % interval of the paired bootstrap."""
    if not (np.isfinite(noise).all() and np.isfinite(other).all()):
        return None
    rows = np.random.default_rng(0).integers(0, len(noise), (RESAMPLES, len(noise)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ahead = 10 * np.log10(other[rows].sum(1) / noise[rows].sum(1))
    return [float(np.quantile(ahead, q)) for q in (0.025, 0.975)]


def floor(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the calibration samples' bare forward passes, in the better of two batch sizes."""
    x = np.load(request["calibration"])["x"]
    run, largest = open_artifact(Path(request["path"]), "onnx", [], 0)
    found = []
    for batch in FLOOR_BATCHES:
        if batch > largest:
            continue
        run(x[:batch])
        started, began = time.perf_counter(), time.process_time()
        for i in range(0, len(x), batch):
            run(x[i : i + batch])
        found.append((time.perf_counter() - started, time.process_time() - began))
    seconds, cpu_seconds = min(found)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}


def latency(request: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of each artifact and the float model on one thread, its median in each turn.

    All of a format take turns in one process, each turn beginning with the next of them, so that what else
    the machine does, and its clock, touch all alike: turns are compared with one another.
    """
    x = np.load(request["evaluation"])["x"][:1]
    calls = {
        key: bare(Path(artifact["path"]), artifact["format"], request["tflite_input_axes"], x)
        for key, artifact in request["artifacts"].items()
    }
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    keys = list(calls)
    times: dict[str, list[float]] = {key: [0.0] * TURNS for key in keys}
    for turn in range(TURNS):
        first = turn % len(keys)
        for key in keys[first:] + keys[:first]:
            times[key][turn] = time_ms(calls[key])
    return {"turns_ms": times}


def time_ms(call: Callable[[], object]) -> float:
    """Median of a call's time."""
    times: list[int] = []
    while len(times) < TIMED or sum(times) < TIMED_FOR_NS:
        started = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - started)
    return round(float(np.median(times)) / 1e6, 6)


def open_artifact(path: Path, kind: str, axes: list[int], threads: int) -> tuple[Run, int]:
    """A function from samples to the one output, in float, and how many samples it takes at a time."""
    if kind == "onnx":
        return _open_onnx(path, threads)
    return _open_tflite(path, axes, threads), 1


def bare(path: Path, kind: str, axes: list[int], x: NDArray[np.float32]) -> Callable[[], object]:
    """A call of the runtime alone, its input in place."""
    if kind == "onnx":
        session = _onnx_session(path, 1)
        feed = {session.get_inputs()[0].name: x}
        return lambda: session.run(None, feed)
    interpreter = _interpreter(path, 1)
    detail = interpreter.get_input_details()[0]
    interpreter.set_tensor(detail["index"], to_port(x, _port(detail, axes)))
    call: Callable[[], object] = interpreter.invoke
    return call


def _open_onnx(path: Path, threads: int) -> tuple[Run, int]:
    session = _onnx_session(path, threads)
    port = session.get_inputs()[0]
    size = port.shape[0]

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return session.run(None, {port.name: np.ascontiguousarray(x)})[0].reshape(len(x), -1)

    return run, size if isinstance(size, int) else max(FLOOR_BATCHES)


def _onnx_session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _open_tflite(path: Path, axes: list[int], threads: int) -> Run:
    interpreter = _interpreter(path, threads or 1)
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    into, out = _port(source, axes), _port(result, list(range(len(result["shape"]))))

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        interpreter.set_tensor(source["index"], to_port(x, into))
        interpreter.invoke()
        return from_port(interpreter.get_tensor(result["index"]), out).reshape(len(x), -1)

    return run


def _interpreter(path: Path, threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


def _port(detail: dict[str, Any], axes: list[int]) -> Port:
    scale, zero_point = detail["quantization"]
    return Port(
        name=detail["name"],
        dtype=np.dtype(detail["dtype"]).name,
        shape=tuple(int(size) for size in detail["shape"]),
        permutation=tuple(axes),
        scale=float(scale) or None,
        zero_point=int(zero_point),
    )


def _plain(estimate: evaluate.Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


if __name__ == "__main__":
    questions = {"predict": predict, "rank": rank, "against": against, "floor": floor, "latency": latency}
    print("\n" + json.dumps(questions[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))), flush=True)
