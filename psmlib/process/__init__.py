"""Gaussian paths from data to noise: their coefficients, conversions between predictions, and the usual families."""

from psmlib.process.families import EDM, RVE, VE, VP, OTFlow, SubVP
from psmlib.process.path import PREDICTIONS, Process, as_time, expand
from psmlib.process.stopped import Lengthened, Retimed, Shortened

__all__ = [
    "EDM", "Lengthened", "OTFlow", "PREDICTIONS", "Process", "RVE", "Retimed", "Shortened", "SubVP", "VE", "VP",
    "as_time", "expand",
]  # fmt: skip
