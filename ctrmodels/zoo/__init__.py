"""The plain models that a ranking engineer starts from."""

from ctrmodels.zoo.deepfm import DeepFM

__all__ = ["DeepFM"]
