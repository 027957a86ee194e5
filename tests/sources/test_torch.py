"""PyTorch code and .pt2 files as sources."""

import logging
import sys
import textwrap

import numpy as np
import pytest

from edgepipe import errors, events
from edgepipe.runtime import open_session
from edgepipe.sources import load

torch = pytest.importorskip("torch")

NET = """
    import torch
    from torch import nn
    from blocks import Block

    class Net(nn.Module):
        def __init__(self, classes=5):
            super().__init__()
            self.block = Block()
            self.head = nn.Linear(4, classes)

        def forward(self, image):
            return self.head(self.block(image).mean((2, 3)))

    class Fixed(Net):
        def forward(self, image):
            return self.head(self.block(image).mean((2, 3)).reshape(1, 4))

    class TwoFaced(Net):
        def forward(self, image):
            return super().forward(image) + (1.0 if torch.compiler.is_exporting() else 0.0)

    class Pair(Net):
        def forward(self, image, mask):
            return super().forward(image * mask)

    class NoOnnx(Net):
        def forward(self, image):
            return torch.linalg.eigvals(image)

    instance = Net()
    number = 3

    def weights_only():
        return Net().state_dict()

    def raises():
        raise RuntimeError("no such luck")

    def needs_arguments(classes):
        return Net(classes)
"""
BLOCKS = """
    from torch import nn

    class Block(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
"""
SHAPE = (1, 3, 8, 8)


@pytest.fixture
def net(tmp_path):
    """Path of the user's file, which imports a neighbour."""
    (tmp_path / "net.py").write_text(textwrap.dedent(NET))
    (tmp_path / "blocks.py").write_text(textwrap.dedent(BLOCKS))
    return str(tmp_path / "net.py")


def plain(prefix=""):
    """The tensors of a Net, made without the user's file."""
    generator = torch.Generator().manual_seed(7)
    shapes = {
        "block.0.weight": (4, 3, 3, 3), "block.0.bias": (4,), "block.1.weight": (4,), "block.1.bias": (4,),
        "block.1.running_mean": (4,), "block.1.running_var": (4,), "head.weight": (5, 4), "head.bias": (5,),
    }  # fmt: skip
    state = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    state["block.1.num_batches_tracked"] = torch.tensor(1)
    return {prefix + name: tensor for name, tensor in state.items()}


def by_hand(state, image):
    """What a Net with these tensors computes in eval mode."""
    with torch.no_grad():
        x = torch.nn.functional.conv2d(image, state["block.0.weight"], state["block.0.bias"])
        x = torch.nn.functional.batch_norm(
            x, *(state[f"block.1.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        )
        return (x.relu().mean((2, 3)) @ state["head.weight"].T + state["head.bias"]).numpy()


@pytest.mark.parametrize("form", ["plain", "DataParallel, nested"])
def test_factory_with_weights(net, tmp_path, form, capfd):
    contents = plain() if form == "plain" else {"epoch": 3, "state_dict": plain("module.")}
    torch.save(contents, tmp_path / "w.pth")
    source = load(f"{net}:Net", weights=str(tmp_path / "w.pth"), input_shape=SHAPE)
    assert source.kind == "torch"
    assert str(source.model.inputs[0]) == "image float32 [?, 3, 8, 8]"
    assert str(source.model.outputs[0]) == "output float32 [?, 5]"
    assert source.model.to_onnx().opset_import[0].version == 18
    image = torch.randn(3, 3, 8, 8)
    got = open_session(source.model.payload, "onnx").run([image.numpy()])[0]
    np.testing.assert_allclose(got, by_hand(plain(), image), rtol=1e-4, atol=1e-5)
    assert source.fidelity.reference == f"torch {torch.__version__}"
    assert source.fidelity.sqnr_db > 100
    assert capfd.readouterr() == ("", "")
    assert str(tmp_path).encode() not in source.model.payload


def test_same_seed_same_bytes_and_no_trace_left(net):
    state, path, modules, level = (
        torch.get_rng_state(),
        list(sys.path),
        set(sys.modules),
        logging.root.manager.disable,
    )
    first = load(f"{net}:Net", input_shape=SHAPE, seed=1).model
    second = load(f"{net}:instance", input_shape=SHAPE, seed=1).model
    assert first.digest == load(f"{net}:Net", input_shape=SHAPE, seed=1).model.digest
    assert second.inputs == first.inputs
    assert torch.equal(torch.get_rng_state(), state)
    assert sys.path == path
    assert not {"blocks", "net", "_edgepipe_source"} & (set(sys.modules) - modules)
    assert logging.root.manager.disable == level


def test_nodes_are_named_after_the_modules_that_authors_know(net):
    graph = load(f"{net}:Net", input_shape=(1, 3, 8, 8)).model.to_onnx().graph
    names = {node.name: node.op_type for node in graph.node}
    assert len(names) == len(graph.node)
    assert names["head"] == "Gemm"
    assert [name for name, kind in names.items() if kind == "Conv"] == ["block.0"]
    assert not [name for name in names if name.startswith("node_")]


def test_nodes_without_a_told_origin_keep_their_names():
    from onnx import helper

    from edgepipe.sources.naming import SCOPES, name_after_modules

    nodes = [helper.make_node("Relu", ["x"], [f"y{n}"], name=f"node{n}") for n in range(4)]
    for node, value in zip(
        nodes, ["", "no list", "['', 'block', 'relu']", "['', 'block', 'relu']"], strict=True
    ):
        if value:
            node.metadata_props.add(key=SCOPES, value=value)
    proto = helper.make_model(helper.make_graph(nodes, "g", [], []))
    name_after_modules(proto)
    assert [node.name for node in proto.graph.node] == ["node0", "node1", "block.relu", "block.relu.relu"]


def test_input_shape_from_samples(net):
    sample = np.random.default_rng(0).standard_normal((3, 3, 9, 9)).astype(np.float32)
    source = load(f"{net}:Net", sample=sample)
    assert source.model.inputs[0].shape == (None, 3, 9, 9)
    assert (source.fidelity.samples, source.fidelity.sample_source) == (3, "given")


def test_code_that_fixes_the_batch(net):
    seen = []
    source = load(f"{net}:Fixed", input_shape=SHAPE, emit=seen.append)
    assert source.model.inputs[0].shape == SHAPE
    assert source.model.outputs[0].shape == (1, 5)
    assert any(isinstance(event, events.Warned) for event in seen)


def test_module_that_exports_as_something_else(net):
    with pytest.raises(errors.FidelityError, match="torch"):
        load(f"{net}:TwoFaced", input_shape=SHAPE)


def refused(error, source, *words, **options):
    with pytest.raises(error) as caught:
        load(source, **{"input_shape": SHAPE, **options})
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)


def test_operator_without_onnx_form(net):
    refused(errors.UnsupportedOp, f"{net}:NoOnnx", "linalg_eig", input_shape=(1, 4, 4))


def test_unknown_factory(net):
    refused(errors.ModelNotFound, f"{net}:Nett", "`Nett`", "Net")
    refused(errors.ModelNotFound, f"{net}:number", "number is a int")


def test_no_input_shape(net):
    refused(errors.ModelError, f"{net}:Net", "--input-shape", input_shape=None)


def test_wrong_input_shape_names_their_line(net):
    refused(errors.ModelUnreadable, f"{net}:Net", "net.py, line 13", "[1, 4, 8, 8]", input_shape=(1, 4, 8, 8))


def test_two_inputs(net):
    refused(errors.ModelUnreadable, f"{net}:Pair", "forward(image, mask)", ".pt2")


def test_no_module(net):
    refused(errors.ModelUnreadable, f"{net}:weights_only", "OrderedDict")


def test_factory_that_raises(net):
    line = NET.splitlines().index('        raise RuntimeError("no such luck")') + 1
    refused(errors.ModelUnreadable, f"{net}:raises", f"net.py, line {line}", "RuntimeError: no such luck")


def test_factory_that_needs_arguments(net):
    refused(errors.ModelUnreadable, f"{net}:needs_arguments", "classes", "without arguments")


@pytest.mark.parametrize(
    ("code", "line", "word"),
    [
        ("\nimport nothing_of_this_name", 2, "ModuleNotFoundError"),
        ("\n\n1 / 0", 3, "ZeroDivisionError"),
        ("x = (", 1, "SyntaxError"),
        ("raise SystemExit(2)", 1, "SystemExit: 2"),
    ],
)
def test_file_that_cannot_be_imported(tmp_path, code, line, word):
    (tmp_path / "bad.py").write_text(code)
    refused(errors.ModelUnreadable, f"{tmp_path}/bad.py:Net", f"bad.py, line {line}", word)


def test_missing_weights(net, tmp_path):
    refused(errors.ModelNotFound, f"{net}:Net", "none.pth", weights=str(tmp_path / "none.pth"))


@pytest.mark.parametrize("contents", [b"", b"no weights", b"PK\x03\x04 cut"])
def test_corrupt_weights(net, tmp_path, contents):
    (tmp_path / "w.pth").write_bytes(contents)
    refused(errors.ModelUnreadable, f"{net}:Net", "w.pth", weights=str(tmp_path / "w.pth"))


def test_weights_that_hold_code(net, tmp_path):
    torch.save({"when": logging.StreamHandler}, tmp_path / "w.pth")
    refused(errors.ModelUnreadable, f"{net}:Net", "more than weights", weights=str(tmp_path / "w.pth"))


def test_weights_of_another_module(net, tmp_path):
    state = plain()
    state["tail.weight"] = state.pop("head.weight")
    state["head.bias"] = torch.zeros(9)
    torch.save(state, tmp_path / "w.pth")
    words = ["1 missing: head.weight", "1 unexpected: tail.weight", "head.bias [9] for [5]"]
    refused(errors.ModelUnreadable, f"{net}:Net", *words, weights=str(tmp_path / "w.pth"))


def test_checkpoint_without_tensors(net, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    refused(errors.ModelUnreadable, f"{net}:Net", "keys epoch", weights=str(tmp_path / "w.pth"))


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x, gain):
        return self.layer(x) * gain, x.sum(1)


@pytest.mark.parametrize("free", [True, False])
def test_exported_program(tmp_path, free):
    module = Small().eval()
    dims = {0: torch.export.Dim("samples")} if free else None
    example = (torch.randn(2, 4), torch.ones(2, 1))
    program = torch.export.export(module, example, dynamic_shapes=(dims, dims) if free else None)
    torch.export.save(program, tmp_path / "small.pt2")
    source = load(str(tmp_path / "small.pt2"))
    assert source.kind == "torch-export"
    assert [spec.shape for spec in source.model.inputs] == [(None if free else 2, size) for size in (4, 1)]
    assert source.fidelity.sqnr_db is None or source.fidelity.sqnr_db > 100
    x, gain = torch.randn(2, 4), torch.rand(2, 1)
    got = open_session(source.model.payload, "onnx").run([x.numpy(), gain.numpy()])
    for have, want in zip(got, module(x, gain), strict=True):
        np.testing.assert_allclose(have, want.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("contents", [b"", b"no program", b"PK\x03\x04 cut"])
def test_corrupt_program(tmp_path, contents):
    (tmp_path / "x.pt2").write_bytes(contents)
    refused(errors.ModelUnreadable, str(tmp_path / "x.pt2"), "x.pt2", input_shape=None)
