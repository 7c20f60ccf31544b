"""Whether real clients' answers are added up under masks: decided once, when a run is submitted.

The decision is part of the settings from then on, ``privacy.sum_bits`` and ``privacy.secure_aggregation``: they go into
the run folder and to all apps, and nobody decides again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from fedmoe.errors import FedMoEError
from fedmoe.metrics import catalogue_metrics
from fedmoe.settings import PrivacySettings, Settings
from fedmoe_server.deploy.deployed import AdmittedClient
from strategies import build_strategy
from strategies.sums.layer import ALTERNATIVES, content_with_mean

BITS = 20  # of an entry, where the settings do not say: HR@10 is within .001 of floats (docs/guarantees.md)
NO_LAUNCHER = "start the run with 'python -m fedmoe_server run', which decides it and knows the clients' keys"


def protected(settings: Settings, admitted: Sequence[AdmittedClient]) -> tuple[Settings, str]:
    """Return the settings of a deployment with the decision in them, and one line: what the server sees, and why.

    admitted: the clients that the server knows. Secure aggregation is on where it can be had, unless the settings say
    ``secure_aggregation: off`` or ``sum_bits: 0``. A run that uses it waits for as many clients as a sum needs.

    Raises FedMoEError, with the reason, if the settings ask for it (``secure_aggregation: on``, or bits) and it cannot
    be had.
    """
    privacy = settings.privacy
    if switched_off(settings):
        plain = _with(settings, sum_bits=privacy.sum_bits or 0, secure_aggregation="off")
        return plain, what_the_server_sees(settings, False, switched_off(settings))
    asked = privacy.secure_aggregation == "on" or privacy.sum_bits is not None
    obstacle = ("" if asked else _doubt(settings)) or _obstacle(settings, admitted)
    if obstacle and asked:
        raise FedMoEError(f"secure aggregation cannot be had: {obstacle}; or set privacy.secure_aggregation to off")
    if obstacle:
        plain = _with(settings, sum_bits=0, secure_aggregation="off")
        return plain, what_the_server_sees(plain, False, obstacle)
    secure = _with(settings, sum_bits=privacy.sum_bits or BITS, secure_aggregation="on")
    least = max(settings.deployment.min_clients, _clients_needed(settings))
    deployment = settings.deployment.model_copy(update={"min_clients": least})
    return secure.model_copy(update={"deployment": deployment}), what_the_server_sees(secure, True)


def what_the_server_sees(settings: Settings, secure: bool, why: str = "") -> str:
    """Return one line; why: the reason for no secure aggregation, and how to get it."""
    if secure:
        least = settings.privacy.smallest_cohort
        return f"Secure aggregation: the server sees sums over at least {least} clients, and no single update or metric"
    return f"Without secure aggregation the server sees each client's update and metrics{': ' if why else ''}{why}"


def switched_off(settings: Settings) -> str:
    """Return which setting has switched secure aggregation off, and what to do about it; "" where none has."""
    if settings.privacy.secure_aggregation == "off":
        return "privacy.secure_aggregation is off; leave it out to switch it on"
    return "privacy.sum_bits is 0; leave it out, or set it to 20" if settings.privacy.sum_bits == 0 else ""


def words_of_simulation(settings: Settings) -> str:
    """Return the words with which ``sim.py`` gives the bits of a deployment; "" where noise is nobody's to repeat."""
    if settings.privacy.on:
        return ""
    bits = settings.privacy.sum_bits
    return "simulation.engine=ray " + (f"privacy.sum_bits={bits}" if bits else "aggregate_in_hosts=false")


def _doubt(settings: Settings) -> str:
    """Return what speaks against sums that nobody has asked for, and how to get them all the same."""
    privacy, guards = settings.privacy, settings.federation.guards
    if privacy.on:
        return f"privacy.side {privacy.side} clips single updates; set it to distributed, and privacy.sum_bits to 14"
    if "norm_multiple" in guards.model_fields_set and guards.norm_multiple:
        return "federation.guards.norm_multiple compares single updates; leave it out"
    if settings.training.client != "plain":
        own = settings.training.client
        return f"training.client {own} may send records that have no sum; if it sends none, set privacy.sum_bits to 20"
    if listed := next(iter(catalogue_metrics(_with(settings, sum_bits=0))), None):
        return f"evaluation.metrics.{listed} needs the items that each user is shown; leave it out"
    return ""


def _obstacle(settings: Settings, admitted: Sequence[AdmittedClient]) -> str:
    """Return why there can be no secure sums, and what to do about it; "" where there can."""
    federation, least = settings.federation, settings.privacy.smallest_cohort
    try:
        strategy = build_strategy(federation.strategy, federation.strategy_parameters)
    except FedMoEError as error:
        return f"this command cannot tell whether the strategy needs single updates ({error})"
    if not content_with_mean(strategy):
        return f"strategy {federation.strategy} needs every client's update; use {ALTERNATIVES}"
    if unknown := [str(entry.client) for entry in admitted if not entry.key]:
        return f"the keys of clients {', '.join(unknown)} are not known; admit their .pub files again"
    clients = max(len(admitted), settings.deployment.min_clients)
    if clients < (needed := _clients_needed(settings)):
        return (
            f"{federation.client_fraction:.0%} of {clients} clients a round are fewer than privacy.smallest_cohort "
            f"{least}; raise federation.client_fraction, or admit {needed} clients"
        )
    if federation.evaluate_every and 0 < federation.evaluate_clients < least:
        return (
            f"federation.evaluate_clients {federation.evaluate_clients} is less than privacy.smallest_cohort {least}; "
            "raise it, or set it to 0 for all"
        )
    return ""


def _clients_needed(settings: Settings) -> int:
    """Return how many connected clients make a round of ``smallest_cohort``."""
    return ceil(settings.privacy.smallest_cohort / settings.federation.client_fraction - 1e-9)


def _with(settings: Settings, **decided: int | str) -> Settings:
    """Return the settings with what was decided; what was not given follows from it, as if a person had decided."""
    given = settings.privacy.model_dump(exclude_unset=True)
    return settings.model_copy(update={"privacy": PrivacySettings.model_validate({**given, **decided})})
