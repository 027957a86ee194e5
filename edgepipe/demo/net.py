"""The network of the demo: a small residual CNN for 8x8 images of handwritten digits."""

from __future__ import annotations

import torch
from torch import nn


class DigitsNet(nn.Module):
    """Convolution, one depthwise separable residual block, pooling, and a linear classifier."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()
        )
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.widen = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU6(),
        )
        self.classify = nn.Linear(2 * width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 [n, 10] of images float32 [n, 1, 8, 8] between 0 and 1."""
        features = self.stem(images)
        features = self.widen(features + self.block(features))
        logits: torch.Tensor = self.classify(features.mean(dim=(2, 3)))
        return logits


def build() -> nn.Module:
    """The factory that `edgepipe deploy net.py:build` calls."""
    return DigitsNet()
