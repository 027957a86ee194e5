"""What it costs at the outputs to round one layer's weight, measured: that layer alone, all else float.

The network runs once, layer by layer; at each layer only the rest of it, from that layer on, runs again
for every candidate. Costs are powers of noise, which add up as long as layers err independently: that is
what makes the choice of bits a knapsack problem. Whether they do shows when all layers are changed at once,
which is a single run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.errors import ModelError
from edgepipe.events import Emit, stage
from edgepipe.model import Model, onnx_model
from edgepipe.quantize.mixed.candidates import Constants
from edgepipe.runtime import open_session, usable_cores

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Measure = Literal["sqnr", "kl"]
Tensors = dict[str, NDArray[Any]]
Outputs = Sequence[Sequence[NDArray[Any]]]
_BATCH = 8


class Trial(msgspec.Struct, frozen=True):
    """A linear op and what it may become.

    Attributes:
        layer: Name of the tensor that it puts out.
        exact: Its own weight and bias.
        options: Those to try in their place.
    """

    layer: str
    exact: Constants
    options: tuple[Constants, ...]


def measured_costs(
    model: Model,
    x: NDArray[Any],
    trials: Sequence[Trial],
    measure: Measure,
    emit: Emit,
) -> dict[str, tuple[float, ...]]:
    """The cost of each option of each layer.

    Args:
        model: The float model, with one input.
        x: Samples for it; with a fixed batch, as many as fill whole batches.
        trials: The layers, with what to try in each.
        measure: "sqnr": squared error of the outputs over their square. "kl": divergence of the
            classes' probabilities, in nats.
        emit: Where progress goes.

    Returns:
        Costs by layer, one for each of its options.

    Raises:
        ModelError: "kl" of a model that is no classifier.
    """
    import onnx

    proto = onnx.shape_inference.infer_shapes(model.to_onnx(), data_prop=True)
    compare = comparison(proto, measure, model.name)
    batches = [{model.inputs[0].name: batch} for batch in in_batches(model, x)]
    if trials:
        batches = _before_first(proto, trials, batches)
    costs: dict[str, tuple[float, ...]] = {}
    reference: list[list[NDArray[Any]]] = []
    with (
        stage(emit, "sensitivity", total=len(trials)) as running,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):
        for done, rest in enumerate(_rests(proto, trials), start=1):
            if not reference:
                reference = list(pool.map(rest.outputs, batches))

            changed = pool.map(partial(_outputs_with, rest, batches), rest.trial.options)
            costs[rest.trial.layer] = tuple(compare(reference, outputs) for outputs in changed)
            batches = list(pool.map(rest.advance, batches))
            running.advance(done)
        running.detail = f"{sum(len(trial.options) for trial in trials)} candidates of {len(trials)} layers"
    return costs


def _outputs_with(rest: _Rest, batches: Sequence[Tensors], constants: Constants) -> Outputs:
    return [rest.outputs(batch, constants) for batch in batches]


def assignment_costs(
    model: Model,
    x: NDArray[Any],
    trials: Sequence[Trial],
    assignments: Sequence[Sequence[int]],
    measure: Measure,
) -> list[float]:
    """The cost of changing all layers at once.

    Args:
        model: The float model, with one input.
        x: Samples for it.
        trials: The layers, with what they may become.
        assignments: For each, the number of the option that each layer takes.
        measure: As of `measured_costs`.

    Raises:
        ModelError: "kl" of a model that is no classifier.
    """
    compare = comparison(model.to_onnx(), measure, model.name)
    batches = in_batches(model, x)
    exact = _outputs(model, batches)
    return [
        compare(exact, _outputs(with_constants(model, trials, options), batches))
        for chosen in assignments
        for options in [[trial.options[option] for trial, option in zip(trials, chosen, strict=True)]]
    ]


def with_constants(model: Model, trials: Sequence[Trial], constants: Sequence[Constants]) -> Model:
    """The model with a weight and a bias of its own for each layer, named by `constant_names`."""
    from onnx import numpy_helper

    proto = model.to_onnx()
    nodes = {name: node for node in proto.graph.node for name in node.output}
    for trial, own in zip(trials, constants, strict=True):
        node = nodes[trial.layer]
        del node.input[1:]
        node.input.extend(constant_names(trial))
        proto.graph.initializer.extend(
            numpy_helper.from_array(array, name)
            for name, array in zip(constant_names(trial), own.arrays, strict=True)
        )
    return onnx_model(proto, model.name)


def constant_names(trial: Trial) -> list[str]:
    """What `with_constants` calls the weight of a layer, and its bias if it has one."""
    return [f"{trial.layer}/weight", f"{trial.layer}/bias"][: len(trial.exact.arrays)]


def _outputs(model: Model, batches: Sequence[NDArray[Any]]) -> Outputs:
    session = open_session(model.payload, "onnx")
    return [session.run([batch]) for batch in batches]


def in_batches(model: Model, x: NDArray[Any]) -> list[NDArray[Any]]:
    """Samples in batches that the model takes; those that do not fill a fixed one are left out."""
    size = model.inputs[0].shape[0] or _BATCH
    dtype = np.dtype(model.inputs[0].dtype)
    whole = len(x) if model.inputs[0].shape[0] is None else len(x) // size * size
    return [np.ascontiguousarray(x[start : start + size], dtype) for start in range(0, whole, size)]


class _Rest:
    """A network from one of its linear ops on.

    Attributes:
        trial: The linear op.
    """

    def __init__(self, proto: onnx.ModelProto, trial: Trial, place: int, following: list[str]) -> None:
        self.trial = trial
        self._results = [value.name for value in proto.graph.output]
        self._following = following
        self._weight, self._bias = f"{trial.layer}/weight", f"{trial.layer}/bias"
        self._session, self._taken = self._open(proto, place)

    def outputs(self, given: Tensors, constants: Constants | None = None) -> list[NDArray[Any]]:
        """The network's outputs from the tensors that are alive before the layer."""
        return self._run(self._results, given, constants)

    def advance(self, given: Tensors) -> Tensors:
        """The tensors that are alive before the next linear op."""
        made = [name for name in self._following if name not in given]
        results = self._run(made, given, None) if made else []
        known = {**given, **dict(zip(made, results, strict=True))}
        return {name: known[name] for name in self._following}

    def _run(self, names: list[str], given: Tensors, constants: Constants | None) -> list[NDArray[Any]]:
        constants = constants or self.trial.exact
        feed = {name: given[name] for name in self._taken}
        feed[self._weight] = constants.weight
        if constants.bias is not None:
            feed[self._bias] = constants.bias
        wanted = [name for name in names if name not in given]
        found = {**given}
        if wanted:
            found.update(zip(wanted, self._session.run(wanted, feed), strict=True))
        return [found[name] for name in names]

    def _open(self, proto: onnx.ModelProto, place: int) -> tuple[onnxruntime.InferenceSession, list[str]]:
        import onnx
        import onnxruntime

        changed = onnx.NodeProto()
        changed.CopyFrom(proto.graph.node[place])
        parameters = [self._weight] if self.trial.exact.bias is None else [self._weight, self._bias]
        del changed.input[1:]
        changed.input.extend(parameters)
        chosen = [changed, *proto.graph.node[place + 1 :]]
        made = {name for node in chosen for name in node.output}
        read = dict.fromkeys(name for node in chosen for name in node.input if name)
        constants = [tensor for tensor in proto.graph.initializer if tensor.name in read]
        known = made | {tensor.name for tensor in constants} | set(parameters)
        taken = [name for name in read if name not in known]
        types = {
            each.name: each for each in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]
        }
        returned = [name for name in dict.fromkeys([*self._results, *self._following]) if name in made]
        graph = onnx.helper.make_graph(
            chosen,
            "rest",
            [types[name] for name in taken]
            + [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in parameters],
            [onnx.helper.make_empty_tensor_value_info(name) for name in returned],
            constants,
        )
        model = onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1  # candidates run side by side, and sums keep their order
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session, taken


def _rests(proto: onnx.ModelProto, trials: Sequence[Trial]) -> Iterator[_Rest]:
    """The rest of the network from each of these layers on, in order of computation."""
    places = {name: index for index, node in enumerate(proto.graph.node) for name in node.output}
    ordered = sorted(trials, key=lambda trial: places[trial.layer])
    for trial, following in zip(ordered, [*ordered[1:], None], strict=True):
        alive = [] if following is None else _alive(proto, places[following.layer])
        yield _Rest(proto, trial, places[trial.layer], alive)


def _before_first(
    proto: onnx.ModelProto, trials: Sequence[Trial], batches: Sequence[Tensors]
) -> list[Tensors]:
    """The tensors that are alive before the first of these layers, for each batch of inputs."""
    layers = {trial.layer for trial in trials}
    place = next(index for index, node in enumerate(proto.graph.node) if layers.intersection(node.output))
    alive = _alive(proto, place)
    made = [name for name in alive if name not in batches[0]]
    if not made:
        return list(batches)
    import onnx

    head = onnx.ModelProto()
    head.CopyFrom(proto)
    del head.graph.node[place:]
    del head.graph.output[:]
    head.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made)
    session = open_session(head.SerializeToString(), "onnx")
    return [{**batch, **dict(zip(made, session.run(list(batch.values())), strict=True))} for batch in batches]


def _alive(proto: onnx.ModelProto, place: int) -> list[str]:
    """Tensors made before a node, inputs included, that it or a later one reads, or that are outputs."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    later = {name for node in proto.graph.node[place:] for name in node.output}
    read = dict.fromkeys(name for node in proto.graph.node[place:] for name in node.input if name)
    read.update(dict.fromkeys(value.name for value in proto.graph.output))
    return [name for name in read if name not in later and name not in constants]


def comparison(proto: onnx.ModelProto, measure: Measure, where: str) -> Callable[[Outputs, Outputs], float]:
    """What tells how far changed outputs, in batches, are from exact ones; see `measured_costs`.

    Raises:
        ModelError: "kl" of a model that is no classifier.
    """
    if measure == "sqnr":
        return noise_to_signal
    check_classifier(proto, where)
    is_probability = ends_in_softmax(proto)
    return lambda exact, changed: divergence(exact, changed, are_probabilities=is_probability)


def ends_in_softmax(proto: onnx.ModelProto) -> bool:
    """Whether a classifier's output is probabilities already."""
    name = proto.graph.output[0].name
    producer = next((node for node in proto.graph.node if name in node.output), None)
    return producer is not None and producer.op_type == "Softmax"


def is_classifier(proto: onnx.ModelProto) -> bool:
    """Whether the model has one output [n, classes]."""
    outputs = proto.graph.output
    return len(outputs) == 1 and len(outputs[0].type.tensor_type.shape.dim) == 2


def check_classifier(proto: onnx.ModelProto, where: str) -> None:
    """Raises ModelError for a model whose output cannot be read as one of classes."""
    if not is_classifier(proto):
        raise ModelError(
            "the divergence of class probabilities needs one output [n, classes]",
            where=where,
            got=", ".join(value.name for value in proto.graph.output),
            remedy='take sensitivity = "sqnr"',
        )


def noise_to_signal(exact: Outputs, changed: Outputs) -> float:
    """Squared error over squared signal, summed over the batches, averaged over the outputs."""
    ratios = []
    for number in range(len(exact[0])):
        noise = sum(
            float(np.square(one[number] - other[number], dtype=np.float64).sum())
            for one, other in zip(exact, changed, strict=True)
        )
        signal = sum(float(np.square(one[number], dtype=np.float64).sum()) for one in exact)
        ratios.append(noise / signal if signal > 0 else noise)
    return sum(ratios) / len(ratios)


def divergence(
    exact: Outputs,
    changed: Outputs,
    *,
    are_probabilities: bool,
) -> float:
    """Mean Kullback-Leibler divergence KL(exact ‖ changed) of the classes' probabilities, in nats."""
    total, rows = 0.0, 0
    for (one,), (other,) in zip(exact, changed, strict=True):
        first, second = (_log_probabilities(each, are_probabilities) for each in (one, other))
        total += float((np.exp(first) * (first - second)).sum())
        rows += len(one)
    return total / rows


def _log_probabilities(values: NDArray[Any], are_probabilities: bool) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    if are_probabilities:
        return np.log(np.maximum(wide, 1e-12))
    wide -= wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))
