"""Resizing maps: RESIZE_NEAREST_NEIGHBOR and RESIZE_BILINEAR."""

from __future__ import annotations

from edgepipe.convert.tflite.layout import channels_last
from edgepipe.convert.tflite.lower.site import Rule, Site, options

# How ONNX maps coordinates, as TFLite's two options (half_pixel_centers, align_corners).
_COORDINATES = {
    "half_pixel": (True, False),
    "pytorch_half_pixel": (True, False),
    "asymmetric": (False, False),
    "align_corners": (False, True),
}
# ONNX's rounding of coordinates that TFLite's nearest neighbour has, by coordinate mode: TFLite rounds
# down between grid points, and to the nearest one where corners are aligned.
_ROUNDING = {
    "asymmetric": {"floor"},
    "align_corners": {"round_prefer_ceil"},
}


def lower_resize(site: Site) -> None:
    """Resize of height and width, nearest or linear."""
    old, new = site.value().shape, site.result().shape
    if len(old) != 4 or old[:2] != new[:2]:
        raise site.refuse("it resizes other axes than height and width")
    mode = site.setting("mode", "nearest")
    coordinates = site.setting("coordinate_transformation_mode", "half_pixel")
    if coordinates not in _COORDINATES or mode not in {"nearest", "linear"}:
        raise site.refuse(f"its mode is {mode}, {coordinates}")
    if coordinates == "pytorch_half_pixel" and 1 in new[2:]:
        raise site.refuse("torch maps the coordinates of a single pixel otherwise")
    half_pixel, align = _COORDINATES[coordinates]
    if mode == "nearest":
        _check_rounding(site, coordinates)
        half_pixel = False
    layout = channels_last(4)
    source = site.read(0, layout)
    sizes = site.integers("sizes", new[2:])
    result = site.define(layout, grid=source.grid)
    code = "RESIZE_NEAREST_NEIGHBOR" if mode == "nearest" else "RESIZE_BILINEAR"
    table = "ResizeNearestNeighborOptions" if mode == "nearest" else "ResizeBilinearOptions"
    fields = options(table, alignCorners=align, halfPixelCenters=half_pixel)
    site.builder.operator(code, [source, sizes], [result], fields)


def _check_rounding(site: Site, coordinates: str) -> None:
    """Refuses neighbours that TFLite picks otherwise; on half pixels, whole factors have one nearest."""
    old, new = site.value().shape[2:], site.result().shape[2:]
    rounding = str(site.setting("nearest_mode", "round_prefer_floor"))
    whole = all(size % before == 0 for size, before in zip(new, old, strict=True))
    if whole and coordinates in {"half_pixel", "pytorch_half_pixel"} and rounding.startswith("round"):
        return
    if rounding not in _ROUNDING.get(coordinates, set()):
        raise site.refuse(f"it rounds coordinates as {rounding}, {coordinates}")


RULES = {"Resize": Rule(lower_resize, int16=True)}
