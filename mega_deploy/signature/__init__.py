"""What a model takes and gives: names, dtypes and shapes with their ranges, and the checks of arrays against them."""

from mega_deploy.signature.ranges import LARGEST_SIZE, Dim, Range, largest, usual
from mega_deploy.signature.tensors import SEQUENCE_AXES, SOURCE_AXIS, StateSpec, TensorSpec
from mega_deploy.signature.whole import Signature

__all__ = [
    "LARGEST_SIZE",
    "SEQUENCE_AXES",
    "SOURCE_AXIS",
    "Dim",
    "Range",
    "Signature",
    "StateSpec",
    "TensorSpec",
    "largest",
    "usual",
]
