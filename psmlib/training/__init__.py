"""Training of banks: when each network is trained, on what, by which steps, and how a run is stopped and resumed."""

from psmlib.training.loop import Progress, description, fit

__all__ = ["Progress", "description", "fit"]
