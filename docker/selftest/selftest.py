"""Runs a small INT8 network in every runtime here and compares its outputs with those of real hardware.

An emulated processor may compute something else without a word: QEMU 7.2's default one does so in LiteRT's
INT8 kernels. Prints one line of JSON; the exit status is 1 where a runtime is wrong. Python 3.6 or later.
"""

import json
import os
import sys
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))
WORST_STEPS = 1
"""Kernels of another processor may round a half the other way; a wrong one is off by far more."""


def run_tflite(samples):
    """Outputs of int8.tflite, a list of integers for each sample."""
    import numpy

    try:
        from ai_edge_litert import interpreter as module
    except ImportError:
        from tflite_runtime import interpreter as module
    interpreter = module.Interpreter(model_path=os.path.join(HERE, "int8.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    [entry], [leave] = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for sample in samples:
        values = numpy.array(sample, numpy.int8).reshape(entry["shape"])
        interpreter.set_tensor(entry["index"], values)
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(leave["index"]).ravel().tolist())
    return outputs


def run_onnx(samples):
    """Outputs of int8.onnx, likewise."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        os.path.join(HERE, "int8.onnx"), options, providers=["CPUExecutionProvider"]
    )
    [entry] = session.get_inputs()
    outputs = []
    for sample in samples:
        values = numpy.array(sample, numpy.int8).reshape(entry.shape)
        outputs.append(session.run(None, {entry.name: values})[0].ravel().tolist())
    return outputs


def main(formats):
    """Tests the runtimes of the formats named: "tflite", "onnx"; all of them must be here."""
    warnings.simplefilter("ignore")
    with open(os.path.join(HERE, "golden.json")) as file:
        golden = json.load(file)
    steps, problems = {}, {}
    for name in formats:
        try:
            outputs = {"tflite": run_tflite, "onnx": run_onnx}[name](golden[name]["inputs"])
        except Exception as error:
            problems[name] = "{}: {}".format(type(error).__name__, str(error).strip().splitlines()[-1:])
            continue
        pairs = zip(sum(outputs, []), sum(golden[name]["outputs"], []))
        steps[name] = max(abs(ours - theirs) for ours, theirs in pairs)
        if steps[name] > WORST_STEPS:
            problems[name] = "outputs are off by {} steps of 256".format(steps[name])
    json.dump({"worst_steps": steps, "problems": problems, "python": sys.version.split()[0]}, sys.stdout)
    sys.stdout.write("\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["tflite", "onnx"]))
