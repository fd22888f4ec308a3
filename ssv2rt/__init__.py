"""Train 3D-convolution action models on Something-Something V2 and score folders of videos with them."""

__version__ = "0.1.0"
