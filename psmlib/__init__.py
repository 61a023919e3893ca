"""Score-based diffusion in blocks of time: the library under a re-runnable book on five papers."""

__version__ = "0.1.0"
