"""Networks that differ from one another in a single layer: what comes before it is computed once for all.

The base network runs from one of these layers to the next over all samples, with the live tensors alone in
memory; at each layer every variant of it runs from there on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from numpy.typing import NDArray

from edgepipe.quantize.explain.splice import Form, Parts, Span, Spliced

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    import onnxruntime

    Open = Callable[[bytes], onnxruntime.InferenceSession]
    Batch = dict[str, NDArray[Any]]


class Variant(msgspec.Struct, frozen=True):
    """The base network with one junction in another form."""

    junction: str
    form: Form


class Course:
    """A base network on its way through the samples.

    Args:
        parts: Of both graphs.
        forms: Form of each junction in the base network.
        spans: Range of each junction, for forms that need one.
        open_session: Makes a session of a serialized network.
    """

    def __init__(
        self, parts: Parts, forms: Mapping[str, Form], spans: Mapping[str, Span], open_session: Open
    ) -> None:
        self._parts, self._forms, self._spans, self._open = parts, forms, spans, open_session
        self._base = Spliced(parts, forms, spans)
        inputs = [value.name for value in parts.pairing.reference.graph.input]
        self._nodes, _, _ = self._base.collect(self._base.outputs, inputs)
        self._made_at = dict.fromkeys(inputs, -1)
        """Place of the node that makes a tensor, of those that depend on the input."""
        for place, node in enumerate(self._nodes):
            if any(name in self._made_at for name in node.input):
                self._made_at |= {name: place for name in node.output if name}

    def outputs(
        self, variants: Sequence[Variant], batches: Sequence[Batch]
    ) -> Iterator[tuple[Variant, list[list[NDArray[Any]]]]]:
        """Each variant with its outputs for each batch, in order of computation."""
        ordered = sorted(variants, key=self._place)
        needs = [self._needed(each) for each in ordered]
        held: list[Batch] = [dict(batch) for batch in batches]
        for index, variant in enumerate(ordered):
            self._advance(held, self._place(variant), {name for need in needs[index:] for name in need})
            network = self._network(variant)
            session = self._open(network.network(given=_types(held)))
            taken = [each.name for each in session.get_inputs()]
            yield (
                variant,
                [session.run(None, {name: values[name] for name in taken}) for values in held],
            )

    def _network(self, variant: Variant) -> Spliced:
        return Spliced(self._parts, {**self._forms, variant.junction: variant.form}, self._spans)

    def _place(self, variant: Variant) -> int:
        """Where the base network computes the junction; 0 where it does not, or it is an input."""
        return max(0, self._made_at.get(self._base.value_of(variant.junction), 0))

    def _before(self, place: int) -> set[str]:
        """Tensors of the base network that are made before a node."""
        return {name for name, made in self._made_at.items() if made < place}

    def _needed(self, variant: Variant) -> list[str]:
        """Tensors of the base network that a variant begins with."""
        network = self._network(variant)
        return network.collect(network.outputs, self._before(self._place(variant)))[2]

    def _advance(self, held: list[Batch], place: int, needed: set[str]) -> None:
        """Runs the base network up to a node, and lets go of what neither it nor a variant reads any more."""
        later = {name for node in self._nodes[place:] for name in node.input} | set(self._base.outputs)
        alive = [name for name in self._made_at if name in self._before(place) & (needed | later)]
        missing = [name for name in alive if name not in held[0]]
        if missing:
            session = self._open(self._base.network(missing, outputs=False, given=_types(held)))
            taken = [each.name for each in session.get_inputs()]
            for values in held:
                made = session.run(None, {name: values[name] for name in taken})
                values.update(zip(missing, made, strict=True))
        for values in held:
            for name in values.keys() - set(alive):
                del values[name]


def _types(held: Sequence[Batch]) -> dict[str, onnx.ValueInfoProto]:
    """The type of each tensor; sizes that differ between batches are left open."""
    import onnx

    found = {}
    for name, first in held[0].items():
        shapes = zip(*(values[name].shape for values in held), strict=True)
        sizes = [each[0] if len(set(each)) == 1 else None for each in shapes]
        dtype = onnx.helper.np_dtype_to_tensor_dtype(first.dtype)
        found[name] = onnx.helper.make_tensor_value_info(name, dtype, sizes)
    return found
