"""One bundle in several places: exact, and where not, how far apart and from which layer on."""

from unittest import mock

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepipe import errors
from edgepipe.measure.outputs import OutputsReport
from edgepipe.workflow import outputs as module


def report_of(outcome):
    return msgspec.convert(outcome.json, OutputsReport)


def test_the_embedded_device_computes_what_the_host_does(bundle, user):
    report = report_of(user.ok("outputs", "bundle", "--target", "x86", "--layers", "--json"))
    assert [(site.name, site.kind) for site in report.sites] == [("x86", "embedded")]
    assert {each.artifact for each in report.results} == {
        "float32.onnx", "float32.tflite", "int8.onnx", "int8.tflite",
    }  # fmt: skip
    for each in report.results:
        assert each.exact
        assert each.samples == 4
        assert (each.differing, each.differing_samples, each.first_layer) == (0, 0, "")
        assert each.layers[-1].op == "output"
        assert len(each.layers) >= 3
    assert not list(user.temporary.iterdir())


def test_samples_of_data(bundle, user, sources):
    report = report_of(
        user.ok("outputs", "bundle", "--data", sources / "val.npz", "--samples", "7", "--json")
    )
    assert (report.samples, report.source) == (7, "val.npz")
    assert all(each.samples == 7 and each.exact and not each.layers for each in report.results)


def other_reference(layer):
    """This host's outputs as if one value of a layer were a step higher on the second sample."""
    real = module._outputs

    def compute(payload, artifact, inputs):
        found = real(payload, artifact, inputs)
        tensors = found[1]
        if artifact.name == "int8.tflite" and (layer < len(tensors)):
            changed = tensors[layer].copy()
            changed.flat[0] += (
                np.array(1, changed.dtype) if changed.flat[0] < 100 else np.array(-1, changed.dtype)
            )
            tensors[layer] = changed
        return found

    return mock.patch.object(module, "_outputs", compute)


def test_another_output_is_told_in_steps_and_samples(bundle, user):
    with other_reference(0):
        shown = user.ok("outputs", "bundle", "--target", "x86").stdout
        report = report_of(user.ok("outputs", "bundle", "--target", "x86", "--json"))
    assert "1 step at most on 1 of 4 samples" in " ".join(shown.split())
    [wrong] = [each for each in report.results if not each.exact]
    assert (wrong.artifact, wrong.worst_steps, wrong.differing_samples, wrong.differing) == (
        "int8.tflite",
        1,
        1,
        1,
    )


def test_the_first_layer_that_differs_is_told(bundle, user):
    with other_reference(2):  # the model's output, then its layers: this is the second of these
        shown = user.ok("outputs", "bundle", "--target", "x86", "--layers")
        report = report_of(user.ok("outputs", "bundle", "--target", "x86", "--layers", "--json"))
    [found] = [each for each in report.results if each.first_layer]
    assert found.artifact == "int8.tflite"
    assert found.first_layer == found.layers[1].layer
    assert [bool(layer.differing) for layer in found.layers] == [False, True, False, False, False]
    assert found.layers[1].worst_steps == 1
    assert found.exact, "the outputs themselves are the same"
    assert "layer 2" in shown.stdout


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (("--target", "none"), errors.TargetError, "no such target"),
        (("--target", "x86", "--target", "x86"), errors.UsageError, "named twice"),
        (("--host", "two words"), errors.UsageError, "host"),
        (("--data", "absent.npz"), errors.DataNotFound, "no such data"),
    ],
)
def test_what_cannot_be_compared(bundle, user, told, options, error, words):
    before = user.listing()
    told(user.run("outputs", "bundle", *options), error, words)
    assert user.listing() == before


def test_an_artifact_that_does_not_run_there_is_told(bundle, user):
    missing = errors.DeviceRuntimeMissing("the device has no runtime for int8.tflite", got="Python 3")
    real = module.pick_runtime

    def pick(artifact, *rest):
        if artifact.name == "int8.tflite":
            raise missing
        return real(artifact, *rest)

    with mock.patch.object(module, "pick_runtime", pick):
        shown = user.ok("outputs", "bundle", "--target", "x86").stdout
    assert "int8.tflite on x86 did not run: the device has no runtime" in " ".join(shown.split())


def test_an_artifact_that_returning_layers_changes_is_told(user, tmp_path):
    """ONNX Runtime joins a Conv with the Add behind it, but not where the sum alone is not what is read."""
    random = np.random.default_rng(0)
    weights = {"stem": (6, 3, 3, 3), "branch": (6, 6, 1, 1), "head": (6 * 25, 4)}
    constants = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "branch"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "head"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 5, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "net", [x], [y], constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        user.folder / "net.onnx",
    )
    np.savez(user.folder / "x.npz", x=random.normal(size=(16, 3, 5, 5)).astype(np.float32))
    user.ok("compress", "net.onnx", "--target", "x86", "--data", "x.npz", "-o", "bundle")
    outcome = user.ok("outputs", "bundle", "--target", "x86", "--layers", "--json")
    disturbed = {each.artifact for each in report_of(outcome).results if each.disturbed}
    assert disturbed == {"float32.onnx"}
