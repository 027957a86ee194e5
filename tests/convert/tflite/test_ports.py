"""Ports in unusual places: unread inputs, outputs that share a tensor or are an input."""

import numpy as np


def test_an_unread_input_stays_a_port(tools):
    model = tools.model([("Relu", ["x"], ["y"], {})], {"x": [1, 3], "unread": [1, 2, 4, 4]})
    emission = tools.same(model)
    assert [port.name for port in emission.inputs] == ["x", "unread"]


def test_two_outputs_of_one_value(tools):
    nodes = [("Relu", ["x"], ["y"], {}), ("Identity", ["y"], ["z"], {})]
    for emission in tools.both(tools.model(nodes, {"x": [1, 3]}, outputs=("y", "z"))):
        assert len(emission.outputs) == 2


def test_an_output_that_is_an_input(tools):
    tools.same(tools.model([("Identity", ["x"], ["y"], {})], {"x": [1, 3, 4, 4]}))


def test_inputs_get_layouts_of_their_own(tools):
    """One map feeds a conv, the other a dense layer: only the first lies channels last."""
    rng = np.random.default_rng(0)
    model = tools.model(
        [
            ("Conv", ["a", "w"], ["c"], {}),
            ("Flatten", ["b"], ["f"], {}),
            ("Gemm", ["f", "v"], ["g"], {}),
            ("GlobalAveragePool", ["c"], ["p"], {}),
            ("Flatten", ["p"], ["q"], {}),
            ("Add", ["q", "g"], ["y"], {}),
        ],
        {"a": [1, 3, 6, 5], "b": [1, 2, 3, 4]},
        {
            "w": rng.normal(size=(4, 3, 1, 1)).astype(np.float32),
            "v": rng.normal(size=(24, 4)).astype(np.float32),
        },
    )
    for emission in tools.both(model, steps=2):
        assert emission.inputs[0].permutation == (0, 2, 3, 1)
        assert emission.inputs[1].permutation == (0, 1, 2, 3)
        assert "TRANSPOSE" not in emission.op_counts


def test_port_names_are_those_of_the_source(tools):
    model = tools.model([("Relu", ["picture"], ["scores"], {})], {"picture": [1, 3]}, outputs=("scores",))
    for emission in tools.both(model):
        assert emission.inputs[0].name == "picture"
        assert emission.outputs[0].name == "scores"
