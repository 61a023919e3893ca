"""Training of banks: when each network is trained, on what, by which steps, and how a run is stopped and resumed."""

from psmlib.training.guarded import CHUNK, Progress
from psmlib.training.loop import BankProgress, fit
from psmlib.training.recipe import Recipe

__all__ = ["CHUNK", "BankProgress", "Progress", "Recipe", "fit"]
