"""Engines that execute a round's clients. They know Flower and Ray, nothing of the model or the data.

``run_simulation`` runs a ServerApp against one of two engines: ``ray`` (``RayGrid``: clients resident in a few Ray
actors) or ``flower`` (Flower's own simulation runtime, the reference). The apps cannot tell which one it is, and
their results are the same to the last bit.
"""

from simulation.engines import run_simulation
from simulation.ray_grid import RayGrid

__all__ = ["RayGrid", "run_simulation"]
