"""The Python API, above all other packages: ``simulate``, ``load``, ``Run`` and ``Halt``, as names of ``fedmoe``."""

from fedmoe_api.run import Run as Run
from fedmoe_api.run import load as load
from fedmoe_api.simulation import simulate as simulate
from fedmoe_server.rounds.halting import Halt as Halt
