"""The rows of the tables, read from rows.toml: which tool, with which settings, on which models."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

MODELS = ("DS-CNN", "MobileNetV1-0.25", "EfficientNet-Lite0", "ResNet-20")
SHOWN = {
    "int8": MODELS,
    "per-tensor": ("EfficientNet-Lite0",),
    "4-bit": ("EfficientNet-Lite0", "ResNet-20"),
}
"""The models of each table."""

FORMATS = {"edgepipe": ("onnx", "tflite"), "litert": ("tflite",)}
"""What adapters make; the others make ONNX."""


class Tool(NamedTuple):
    """One row.

    Attributes:
        name: What the row is called; one name is one row of one table.
        table: The table that it stands in.
        environment: Whose Python runs it: "edgepipe" or a file of requirements/.
        settings: What its adapter gets, by model; it is run on these models.
    """

    name: str
    table: str
    environment: str
    settings: dict[str, dict[str, Any]]

    @property
    def formats(self) -> tuple[str, ...]:
        """Artifacts that it makes, the one that its quantization is timed for first."""
        return FORMATS.get(self.environment, ("onnx",))


def read_tools() -> tuple[Tool, ...]:
    """All rows, in the order of the file."""
    content = tomllib.loads((Path(__file__).parent / "rows.toml").read_text("utf-8"))
    return tuple(
        Tool(row["name"], row["table"], row["environment"], _settings(row, content["efforts"]))
        for row in content["rows"]
    )


def _settings(row: dict[str, Any], efforts: dict[str, dict[str, int]]) -> dict[str, dict[str, Any]]:
    common, effort = row.get("settings", {}), row.get("effort")
    return {
        model: common | ({} if effort is None else {effort: efforts[effort][model]})
        for model in row.get("models", SHOWN[row["table"]])
    }


TOOLS = read_tools()
