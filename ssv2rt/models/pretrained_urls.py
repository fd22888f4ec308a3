"""URLs of torchvision's published weights, and the normalization that they were trained with.

https://pytorch.org/vision/stable/models.html
"""

from __future__ import annotations

_FILES = "https://download.pytorch.org/models"
URLS = {
    "r3d_18": f"{_FILES}/r3d_18-b3b3357e.pth",
    "mc3_18": f"{_FILES}/mc3_18-a90a0ba3.pth",
    "r2plus1d_18": f"{_FILES}/r2plus1d_18-91a641e6.pth",
    "resnet18": f"{_FILES}/resnet18-f37072fd.pth",
    "resnet50": f"{_FILES}/resnet50-0676ba61.pth",
    "resnet101": f"{_FILES}/resnet101-63fe2227.pth",
}

# Mean and standard deviation of Kinetics' RGB values, 0 to 255. The first three networks expect them.
KINETICS_MEAN = tuple(255 * value for value in (0.43216, 0.394666, 0.37645))
KINETICS_STD = tuple(255 * value for value in (0.22803, 0.22145, 0.216989))
