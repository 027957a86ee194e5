"""The four reference models as calibration sees them: simplified, planned, with samples split in two."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe import sources
from edgepipe.graph import edit
from edgepipe.graph.simplify import simplify
from edgepipe.model import Model
from edgepipe.quantize.plan import make_plan
from edgepipe.quantize.scheme import Scheme, assign

sys.path.insert(0, str(Path(__file__).parents[1] / "acceptance"))
from prepare import cases as acceptance_cases

SAMPLES = 64
"""Samples to calibrate on."""


class Case(msgspec.Struct, frozen=True):
    """One model with its samples.

    Attributes:
        name: For the tables.
        model: The simplified float model.
        x: float32 [samples, ...].
        tensors: Activations that INT8 needs a grid for.
        channel_axes: Axis of the channels, of those whose means correct biases.
    """

    name: str
    model: Model
    x: NDArray[np.float32]
    tensors: tuple[str, ...]
    channel_axes: dict[str, int]

    def _order(self, draw: int) -> NDArray[np.intp]:
        return np.random.default_rng(draw).permutation(len(self.x))

    def calibration(self, draw: int, samples: int = SAMPLES) -> NDArray[np.float32]:
        """The samples that this draw calibrates on."""
        return np.ascontiguousarray(self.x[np.sort(self._order(draw)[:samples])])

    def evaluation(self, draw: int, most: int) -> NDArray[np.float32]:
        """Samples that it does not calibrate on."""
        return np.ascontiguousarray(self.x[np.sort(self._order(draw)[SAMPLES : SAMPLES + most])])


def load(root: Path, only: str | None) -> list[Case]:
    """The models that `root`, laid out as benchmarks/acceptance says, holds the files for."""
    found = []
    for each in acceptance_cases(root):
        if only and only not in each.name:
            continue
        x, _ = each.data()
        source, *options = each.arguments
        settings: dict[str, Any] = {"input_shape": (1, *x.shape[1:])} if source.endswith(":build") else {}
        if options:
            settings["weights"] = options[1]
        model = simplify(sources.load(source, **settings).model)
        graph = edit.open_graph(model).graph
        plan = make_plan(graph, assign(graph, Scheme(), ()), symmetric=False)
        axes = {str(node.inputs[0].name): 1 for node in plan.linears if node.op_type != "MatMul"}  # type: ignore[union-attr]
        tensors = tuple(str(value.name) for value in plan.tensors)
        found.append(Case(each.name, model, np.asarray(x, np.float32), tensors, axes))
    return found
