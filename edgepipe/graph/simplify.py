"""The clean-up that every recipe starts with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.graph import affine, edit, fold, hoist, overhang, redundant, shapes
from edgepipe.model import Model
from edgepipe.passes import Context, Pass

if TYPE_CHECKING:
    import onnx_ir as ir

_ROUNDS = 5
"""Rounds of folding at most: each may make shapes known that the next can fold."""


class Simplify(Pass, frozen=True, kw_only=True):
    """Folds constants, batch normalizations and no-ops, and infers every shape.

    What the graph computes stays the same to float32 rounding, as do the names of its inputs and
    outputs and its dynamic batch. Batch normalization folds into the convolution before it as in
    Jacob et al. 2018 (arXiv 1712.05877), section 3.2, equation 14. A model that is quantized already
    passes through untouched.

    Attributes:
        fold_normalization: Whether batch normalizations fold into the ops before them; else they
            become a product and a sum of their own.
    """

    fold_normalization: bool = True

    def apply(self, model: Model, context: Context) -> Model:  # noqa: ARG002 - every pass takes it
        """The simplified model."""
        return simplify(model, fold_normalization=self.fold_normalization)


def simplify(model: Model, *, fold_normalization: bool = True) -> Model:
    """The simplified model; see `Simplify`."""
    if edit.is_quantized(model):
        return model
    graph_model = _simplify(edit.open_graph(model), fold_normalization=fold_normalization)
    return edit.freeze(graph_model, model.name)


def _simplify(graph_model: ir.Model, *, fold_normalization: bool) -> ir.Model:
    from onnx_ir.passes import common

    common.InlinePass()(graph_model)
    common.RemoveInitializersFromInputsPass()(graph_model)
    fold.lift_tensors(graph_model.graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph_model)
    for _ in range(_ROUNDS):
        changed = [fold.fold_constants(graph_model), fold.fold_batch_reshapes(graph_model)]
        changed.append(redundant.drop_no_ops(graph_model.graph))
        if not any(changed):
            break
        common.RemoveUnusedNodesPass()(graph_model)
        graph_model = shapes.refresh(graph_model)
    affine.normalize(graph_model.graph, fold_normalization=fold_normalization)
    redundant.merge_pads(graph_model.graph)
    overhang.settle(graph_model.graph)
    redundant.globalize_pools(graph_model.graph)
    hoist.hoist_clipping(graph_model.graph)
    common.DeduplicateInitializersPass(size_limit=1 << 30)(graph_model)
    common.CommonSubexpressionEliminationPass()(graph_model)
    common.RemoveUnusedNodesPass()(graph_model)
    common.RemoveUnusedOpsetsPass()(graph_model)
    common.NameFixPass()(graph_model)
    return graph_model
