"""What a job was given: enough to give it the same again."""

from __future__ import annotations

from typing import Literal

import msgspec


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """A job's inputs and options; those of the same name as in `edgepipe.job.Job`.

    Recipe, target and preprocessing are kept as text and plain fields: a later edgepipe that knows other
    ones can read the record all the same.

    Attributes:
        model: As the user named it.
        model_sha256: Of its file, as `sha256sum` gives it; None for a folder.
        weights: As the user named them; None where there were none.
        weights_sha256: Of their file.
        data: As the user named it; None without data.
        data_sha256: Of its file; None for a folder.
        input_shape: Shape of one input batch; None where the model says it.
        preprocessing: How images became the model's input: the fields of `edgepipe.preprocess.Preprocessing`.
        calibration_samples: As asked for; None for the default.
        calibrate_random: True where samples were made up.
        limit: Most samples of the data that were used; None for all.
        ports: Type of the artifacts' inputs and outputs; None for each format's default.
        recipe: The recipe whole, as TOML, with every setting written out.
        target: The target whole, as TOML: a file of the user's may change, or be out of reach.
    """

    model: str
    model_sha256: str | None
    weights: str | None = None
    weights_sha256: str | None = None
    data: str | None = None
    data_sha256: str | None = None
    input_shape: tuple[int, ...] | None = None
    preprocessing: dict[str, object] | None = None
    calibration_samples: int | None = None
    calibrate_random: bool = False
    limit: int | None = None
    ports: Literal["float32", "integer"] | None = None
    recipe: str
    target: str
