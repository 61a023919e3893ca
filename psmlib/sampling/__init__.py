"""Samplers: each takes (score, process, x_T, times, ...) and yields its states, last one at times[-1]."""

from psmlib.sampling.ode import ode
from psmlib.sampling.sde import sde
from psmlib.sampling.state import State, last

__all__ = ["State", "last", "ode", "sde"]
