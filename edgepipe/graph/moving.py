"""Ops that make no new numbers: what they put out are elements of what they take, on whatever grid those lie.

One table for all that asks; where a use has exceptions, they stand beside it.
"""

REARRANGING = frozenset({
    "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "SpaceToDepth", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Ops that move, repeat or leave out elements of their first input; others are shapes, axes and the like."""
SELECTING = frozenset({"MaxPool", "ReduceMax", "ReduceMin"})
"""Ops that choose elements of their first input by their order."""
JOINING = frozenset({"Concat", "Max", "Min"})
"""Ops that put together, or choose from, several inputs: all on one grid, if what comes out is to be."""
FILLING = frozenset({"Pad"})
"""Ops that put a constant among the elements of their first input."""
MOVING = REARRANGING | SELECTING | JOINING | FILLING
"""All of them."""
