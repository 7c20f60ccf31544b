"""Engines that execute a round's clients. They know Flower and Ray, nothing of the model or the data.

``run_simulation`` runs a ServerApp against one of three engines: ``ray`` (``RayGrid``: clients resident in a few Ray
actors), ``vectorized`` (the same, where many clients' train messages are executed at once) or ``flower`` (Flower's own
simulation runtime, the reference). The apps cannot tell which one it is. The results of ``ray`` and ``flower`` are the
same to the last bit where all replies come back, and to about 1e-6 where the hosts merge them.
"""

from simulation.engines import run_simulation
from simulation.ray.grid import RayGrid
from simulation.ray.work import Reducer

__all__ = ["RayGrid", "Reducer", "run_simulation"]
