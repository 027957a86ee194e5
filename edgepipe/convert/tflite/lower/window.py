"""Sliding windows: ONNX's explicit pads as TFLite's SAME or VALID, or as a PAD operator before VALID."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec
import numpy as np

from edgepipe.convert.tflite.graph import Array, Grid
from edgepipe.convert.tflite.layout import channels_last
from edgepipe.convert.tflite.lower.site import Site, options
from edgepipe.convert.tflite.program import Tensor

Pair = tuple[int, int]


class Frame(msgspec.Struct, frozen=True):
    """A window along one axis.

    Attributes:
        size: Input size.
        result: Output size.
        taps: Size of the window.
        dilation: Distance of its taps.
        stride: Its step.
        before: Pad in front of the input.
        named_after: Pad behind it that ONNX names; the stride may leave some of it untouched.
    """

    size: int
    result: int
    taps: int = 1
    dilation: int = 1
    stride: int = 1
    before: int = 0
    named_after: int = 0

    @property
    def span(self) -> int:
        """What the window covers, its holes included."""
        return (self.taps - 1) * self.dilation + 1

    @property
    def after(self) -> int:
        """Pad behind that the last window really touches; negative where it ends before the input does."""
        return (self.result - 1) * self.stride + self.span - self.size - self.before

    @property
    def is_valid(self) -> bool:
        """Whether this is TFLite's VALID: no window touches a pad."""
        return self.before == 0 and self.after <= 0

    @property
    def is_same(self) -> bool:
        """Whether this is TFLite's SAME: ceil(size / stride) outputs, the odd pad behind."""
        total = max((self.result - 1) * self.stride + self.span - self.size, 0)
        return self.result == -(-self.size // self.stride) and self.before == total // 2

    def taps_inside(self, *, pads: bool) -> Array:
        """How many taps of each window lie on the input, or on the input and its pads: int64 [result]."""
        starts = np.arange(self.result) * self.stride - self.before
        taps = starts[:, None] + np.arange(self.taps) * self.dilation
        low, high = (-self.before, self.size + self.named_after) if pads else (0, self.size)
        return np.asarray(((taps >= low) & (taps < high)).sum(axis=1))


class Window(msgspec.Struct, frozen=True):
    """A window over height and width.

    Attributes:
        height: Along the height.
        width: Along the width.
        padding: What TFLite is told; VALID means that a PAD operator must add the pads first.
    """

    height: Frame
    width: Frame
    padding: Literal["SAME", "VALID"]

    @property
    def is_pointwise(self) -> bool:
        """Whether each output is one place of the input, in order."""
        frames = (self.height, self.width)
        return all((f.taps, f.stride, f.before, max(f.after, 0)) == (1, 1, 0, 0) for f in frames)

    @property
    def pads(self) -> tuple[Pair, Pair]:
        """(before, after) of height and width that a PAD operator must add; zeros if none."""
        if self.padding == "SAME":
            return (0, 0), (0, 0)
        return (self.height.before, max(self.height.after, 0)), (self.width.before, max(self.width.after, 0))


def window(site: Site, kernel: tuple[int, ...]) -> Window:
    """The window of a node whose first input is [1, channels, height, width] or [1, channels, width].

    Args:
        site: The node; settings strides, dilations, pads, auto_pad.
        kernel: Its size over the spatial axes.
    """
    count = len(kernel)
    strides = site.setting("strides", [1] * count)
    dilations = site.setting("dilations", [1] * count)
    pads = site.setting("pads", [0] * 2 * count)
    auto_pad = str(site.setting("auto_pad", "NOTSET"))
    frames = [Frame(1, 1)] * (2 - count)
    for axis in range(count):
        frame = Frame(
            site.value().shape[2 + axis],
            site.result().shape[2 + axis],
            kernel[axis],
            int(dilations[axis]),
            int(strides[axis]),
        )
        before, after = _pads(auto_pad, (int(pads[axis]), int(pads[count + axis])), max(frame.after, 0))
        frames.append(msgspec.structs.replace(frame, before=before, named_after=after))
    valid = all(frame.is_valid for frame in frames)
    same = not valid and all(frame.is_same for frame in frames)
    return Window(frames[0], frames[1], "SAME" if same else "VALID")


def _pads(auto_pad: str, explicit: Pair, total: int) -> Pair:
    match auto_pad:
        case "SAME_UPPER":
            return total // 2, total - total // 2
        case "SAME_LOWER":
            return total - total // 2, total // 2
        case "VALID":
            return 0, 0
    return explicit


def padded(site: Site, source: Tensor, frame: Window, lowest: Tensor | None = None) -> Tensor:
    """The tensor [1, height, width, channels] with the window's pads around it.

    Args:
        site: The node.
        source: The tensor.
        frame: Its pads are added, if it has any.
        lowest: Scalar to pad with; None for 0.0, which on int8 is the zero point.
    """
    if not any(frame.pads[0] + frame.pads[1]):
        return source
    amounts = ((0, 0), *frame.pads, (0, 0))
    shape = tuple(size + sum(amount) for size, amount in zip(source.shape, amounts, strict=True))
    result = site.builder.like(source, f"{source.name}/padded", shape)
    pads = site.integers("pads", np.array(amounts))
    if lowest is None:
        site.builder.operator("PAD", [source, pads], [result], options("PadOptions"))
    else:
        site.builder.operator("PADV2", [source, pads, lowest], [result], options("PadV2Options"))
    return result


def spatial_input(site: Site) -> Tensor:
    """The first input as [1, height, width, channels]; an input with one spatial axis gets height 1."""
    rank = len(site.value().shape)
    source = site.read(0, channels_last(rank))
    if rank == 4:
        return source
    wide = site.builder.like(source, f"{source.name}/wide", (source.shape[0], 1, *source.shape[1:]))
    site.builder.reshape(source, wide)
    return wide


@contextmanager
def spatial_output(site: Site, grid: Grid | None = None) -> Iterator[Tensor]:
    """The tensor [1, height, width, channels] to write the first output to; likewise."""
    rank = len(site.result().shape)
    result = site.define(channels_last(rank), grid=grid)
    if rank == 4:
        yield result
        return
    wide = site.builder.like(result, f"{result.name}/wide", (result.shape[0], 1, *result.shape[1:]))
    yield wide
    site.builder.reshape(wide, result)
