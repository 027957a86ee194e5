"""How an image becomes the model's input: the steps that its training fixed, in one record.

Wrong preprocessing raises no error, it only makes a model look worse than it is: so every step is
named, none is guessed, and the arithmetic is that of NumPy on float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

Color = Literal["rgb", "bgr", "gray"]
Layout = Literal["NCHW", "NHWC"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Pixels = Annotated[int, msgspec.Meta(ge=1, le=16384)]

CHANNELS: dict[Color, int] = {"rgb": 3, "bgr": 3, "gray": 1}


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Steps from a decoded image to the model's input, applied in the order of the fields.

    `value = (pixel * scale - mean) / std` for each channel, where a pixel is 0 to 255.

    Attributes:
        resize: Length of the shorter side after resizing, the aspect ratio kept; None leaves the size.
        crop: Side of the square cut from the centre; None keeps the whole image.
        color: Order of the channels: "rgb", "bgr" or "gray" (one channel).
        scale: Factor on each pixel.
        mean: Subtracted after scaling: one number for each channel, or one for all.
        std: Divisor after that: one number for each channel, or one for all.
        layout: Axes of the result: "NCHW" or "NHWC".
        interpolation: Filter of the resizing.
    """

    resize: Pixels | None = None
    crop: Pixels | None = None
    color: Color = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Layout = "NCHW"
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        """Rejects numbers that do not fit the channels; msgspec reports them with their place."""
        channels = CHANNELS[self.color]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in {1, channels}:
                allowed = " or ".join(map(str, sorted({1, channels})))
                raise ValueError(f"`{name}` needs {allowed} numbers for {self.color}, not {len(values)}")
        if min(self.std, default=0) <= 0:
            raise ValueError("`std` must be above 0")

    def apply(self, image: Image.Image) -> NDArray[np.float32]:
        """The input made of one image.

        Args:
            image: Any image that Pillow decodes; transparency is dropped.

        Returns:
            float32 [channels, height, width], or [height, width, channels] for NHWC.

        Raises:
            ValueError: the image is smaller than the crop.
        """
        import numpy as np

        sized = self._crop(self._resize(image.convert("L" if self.color == "gray" else "RGB")))
        pixels = np.asarray(sized, dtype=np.float32).reshape(sized.height, sized.width, -1)
        if self.color == "bgr":
            pixels = pixels[:, :, ::-1]
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values = (pixels * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(values if self.layout == "NHWC" else values.transpose(2, 0, 1))

    def _resize(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        short = min(image.size)
        if self.resize is None or short == self.resize:
            return image
        width, height = (max(1, round(side * self.resize / short)) for side in image.size)
        return image.resize((width, height), Image.Resampling[self.interpolation.upper()])

    def _crop(self, image: Image.Image) -> Image.Image:
        if self.crop is None:
            return image
        if min(image.size) < self.crop:
            raise ValueError(
                f"an image of {image.width}x{image.height} is smaller than the crop of {self.crop}"
            )
        left, top = round((image.width - self.crop) / 2), round((image.height - self.crop) / 2)
        return image.crop((left, top, left + self.crop, top + self.crop))
