"""Client-level differential privacy: the wrapped strategy sees one noisy mean in place of the replies.

McMahan, Ramage, Talwar and Zhang: Learning differentially private recurrent language models (ICLR 2018), with the
clipping norm of Andrew, Thakkar, McMahan and Ramaswamy: Differentially private learning with adaptive clipping
(NeurIPS 2021).

With w the model that was sent, w_i the replies, C the clipping norm, z the noise multiplier and m the *expected* number
of clients of a round (a constant, whoever answers):

    d_i  = (w_i - w) * min(1, C / ||w_i - w||)          the norm is over all shared parameters together
    mean = w + (sum of d_i + Normal(0, (z * C)^2)) / m

Removing a client changes the sum by at most C, so this is the Gaussian mechanism with multiplier z; a client that
failed counts as an update of zero, which changes nothing of that. What the strategy makes of the mean, such as a step
of FedAdam, is post-processing and costs nothing. (Flower's own wrappers add their noise to the *result* of the
strategy, which is right for plain averaging alone.) All clients weigh the same.

With ``side`` "client" the clients clip, and each adds Normal(0, (z * C)^2 / m) itself; the server adds what clients
that did not answer have left out. The sum has the same noise (or more, where more than m answered), but nobody, the
server included, ever sees an update without noise. The price: a bad client hides in the noise, so the server can bound
an update's norm by C and the length of the noise alone.

Adaptive clipping spends a part of the noise on the noisy share b of clients within the norm, and follows its quantile:

    b = 1/2 + (sum of (within_i - 1/2) + Normal(0, s^2)) / m,  s = m / 20
    C <- C * exp(-rate * (b - quantile)),  noise on the sum: (z^-2 - (2 s)^-2)^(-1/2) * C
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast
from zlib import crc32

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings
from strategies.layers.layer import Layer, Round, chain, weight_key
from strategies.layers.replies import metrics_of
from strategies.layers.talk import TalkingGrid
from strategies.needs import refuse_comparing
from strategies.privacy.accountant import noise_for
from strategies.updates import Vector, norm_of, sent_models, update_of, vector_of, with_arrays

NORM_KEY = "clipping_norm"  # in the config of a message: the client clips its update (Flower's name)
NOISE_KEY = "noise_deviation"  # in the config of a message: the client adds noise of this deviation to each number
BIT_KEY = "norm_bit"  # in the metrics of a reply: 1 if the client's update was clipped (Flower's name)
METRICS_KEY = "metrics"  # in the config of a message: "none" asks for a reply without metrics
FLOWERS_PRIVACY = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)
LEAST_COHORT = 10  # expected clients of a round: with fewer, noise is all that is left
EMPTY_CHANCE = 1e-8  # that a round is without any client, which nothing can be made of
SECRET_BITS = 96


class PrivateUpdates(Layer):
    """Hand to ``strategy`` the noisy mean of the clipped updates, as the reply of one client.

    noise: the multiplier z, above 0.
    norm: the clipping norm C, above 0; with adaptive clipping its first value.
    rate: the probability q with which a client takes part, in (0, 1]; the cohort must be a Poisson sample.
    clipping: "fixed" or "adaptive". side: who clips and makes noise, "server" or "client".
    metrics: "none": clients are asked for no metrics; "exact": they are averaged as they are, without any privacy.
    key: where the noise comes from, with the round; whoever knows it can take the noise away.
    quantile, norm_rate: of adaptive clipping, see above.

    ``norm`` holds the norm for the next round, ``used_norm`` that of the latest one.

    Raises FedMoEError for a strategy that does not average or makes noise itself, and in adaptive clipping for more
    noise than the expected cohort allows.
    """

    needs_every_reply = True
    poisson = True
    means_only = True
    mechanism: ClassVar[str] = "Poisson-sampled Gaussian"
    guarantee: ClassVar[str] = (
        "(epsilon, delta) for the presence of one client; training alone, neither evaluation nor metrics"
    )

    def __init__(
        self,
        strategy: Strategy,
        *,
        noise: float,
        norm: float,
        rate: float,
        key: int,
        clipping: Literal["fixed", "adaptive"] = "fixed",
        side: Literal["server", "client"] = "server",
        metrics: Literal["none", "exact"] = "none",
        quantile: float = 0.5,
        norm_rate: float = 0.2,
    ) -> None:
        super().__init__(strategy)
        refuse_comparing(strategy, "privacy")
        for part in chain(strategy):
            if isinstance(part, FLOWERS_PRIVACY):  # on the client's side its norm would take the place of ours
                raise FedMoEError(
                    f"privacy: {type(part).__name__} clips and adds noise as well; name the strategy that is inside it"
                )
        self.noise = noise
        self.norm = norm
        self.used_norm = norm
        self.rate = rate
        self.key = key
        self.clipping = clipping
        self.side = side
        self.metrics = metrics
        self.quantile = quantile
        self.norm_rate = norm_rate
        self._expected = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of a round; FedMoEError if the cohort is too small on average."""
        if not self._expected:
            raise FedMoEError("a round was begun before expect: the number of clients is not known")
        config = config.copy()
        if self.metrics == "none":
            config[METRICS_KEY] = "none"
        if self.side == "client":
            config[NORM_KEY] = self.norm
            config[NOISE_KEY] = self._share_of_noise()
        asked = {key: config[key] for key in (METRICS_KEY, NORM_KEY, NOISE_KEY) if key in config}
        view = cast(Grid, TalkingGrid(grid, _accounted))
        messages = list(super().configure_train(server_round, arrays, config, view))
        for message in messages:
            if not any(asked.items() <= dict(sent).items() for sent in message.content.config_records.values()):
                raise FedMoEError(
                    "privacy: the strategy sends a config without what clients are asked for privacy: begin with "
                    "config.copy() of the one that configure_train is given"
                )
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of an evaluation; FedMoEError for what the strategy asks clients beside it."""
        return super().configure_evaluate(server_round, arrays, config, cast(Grid, TalkingGrid(grid, _accounted)))

    def expect(self, clients: int) -> None:
        """Say how many clients there are in all; the rate's share of them is m. FedMoEError if that is too few."""
        self._expected = self.rate * clients
        empty = (1.0 - self.rate) ** clients
        if self._expected < LEAST_COHORT or empty > EMPTY_CHANCE:
            raise FedMoEError(
                f"privacy needs at least {LEAST_COHORT} clients a round on average and hardly ever none; "
                f"federation.client_fraction {self.rate:g} of {clients} clients gives {self._expected:.1f}, and none "
                f"with a chance of {empty:.1g}: raise it, or connect more clients"
            )
        self._noise_on_updates()

    def _share_of_noise(self) -> float:
        """Return the standard deviation of the noise that one client adds."""
        return self._noise_on_updates() * self.norm / math.sqrt(self._expected)

    def revised(self, sent: Round, replies: list[Message]) -> list[Message]:
        """Return the noisy mean of the clipped updates as the one reply; the replies as they are, if all are errors."""
        answers = [reply for reply in replies if reply.has_content()]
        if not answers:
            return replies
        model, models = vector_of(sent.arrays, np.float64), sent_models(sent, np.float64)
        total: Vector = {name: np.zeros_like(values) for name, values in model.items()}
        within, largest = 0, self._largest_norm(sum(values.size for values in model.values()))
        for reply in answers:
            update = update_of(reply, models(reply))
            length = norm_of(update)
            within += self._within(reply, length)
            factor = min(1.0, largest / length) if length else 1.0
            for name, values in update.items():
                total[name] += factor * values
        rng = np.random.default_rng(np.random.SeedSequence([self.key, crc32(b"privacy noise"), sent.number]))
        missing = max(0.0, 1.0 - len(answers) / self._expected) if self.side == "client" else 1.0
        deviation = self._noise_on_updates() * self.norm * math.sqrt(missing)
        for name, values in total.items():
            total[name] = model[name] + (values + rng.normal(0.0, deviation, values.shape)) / self._expected
        self.used_norm = self.norm
        self._adapt(within, len(answers), rng)
        return [with_arrays(answers[0], sent.arrays, total, self._metrics(answers))]

    def state_dict(self) -> dict[str, np.ndarray]:
        """The clipping norm; all else follows from the settings."""
        return {"norm": np.array([self.norm, self.used_norm])}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.norm, self.used_norm = (float(value) for value in state["norm"])

    def _largest_norm(self, size: int) -> float:
        """Return the bound on an update of ``size`` numbers as it arrives; honest noise is hardly ever longer."""
        return self.norm if self.side == "server" else self.norm + self._share_of_noise() * (math.sqrt(size) + 4.0)

    def _within(self, reply: Message, length: float) -> int:
        """Whether an update was within the norm: the client says so where it has clipped already."""
        bit = metrics_of(reply).get(BIT_KEY)
        return int(not bit) if self.side == "client" and isinstance(bit, int) else int(length <= self.norm)

    def _noise_on_updates(self) -> float:
        if self.clipping == "fixed":
            return self.noise
        left = self.noise**-2 - (2.0 * self._expected / 20.0) ** -2
        if left <= 0.0:
            raise FedMoEError(
                f"privacy.clipping adaptive: the noise multiplier {self.noise:.2f} is too large for "
                f"{self._expected:.0f} clients a round; take clipping=fixed, or raise federation.client_fraction"
            )
        return float(left**-0.5)

    def _adapt(self, within: int, answered: int, rng: np.random.Generator) -> None:
        if self.clipping == "fixed":
            return
        centred = within - answered / 2.0 + rng.normal(0.0, self._expected / 20.0)
        self.norm *= math.exp(-self.norm_rate * (0.5 + centred / self._expected - self.quantile))

    def _metrics(self, answers: Sequence[Message]) -> dict[str, Any]:
        kept: dict[str, Any] = {weight_key(self.strategy): 1.0}
        if self.metrics == "exact":
            records = [metrics_of(reply) for reply in answers]
            for name in records[0]:
                if name not in (*kept, BIT_KEY):
                    kept[name] = np.mean([record[name] for record in records], axis=0).tolist()
        return kept


def noise_of(settings: Settings) -> float:
    """Return the noise multiplier of a private run: as given, or the one with which all rounds cost epsilon."""
    privacy, federation = settings.privacy, settings.federation
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    assert privacy.epsilon is not None  # one of the two is what makes the run private
    return noise_for(privacy.epsilon, privacy.delta, federation.client_fraction, federation.num_rounds)


def secret_of(settings: Settings, deployed: bool) -> int:
    """Return what cohorts and noise are drawn from: the seed in a simulation, so that it can be repeated.

    Real clients are told the seed with the settings, and whoever knows it could take the noise away; there it is drawn
    anew by the operating system, and never written down.
    """
    return secrets.randbits(SECRET_BITS) if deployed else settings.seed


def private(strategy: Strategy, settings: Settings, key: int) -> PrivateUpdates:
    """Return ``strategy`` behind the mechanism that the settings describe."""
    privacy = settings.privacy
    assert privacy.side != "distributed"  # see strategies.privacy.distributed
    return PrivateUpdates(
        strategy,
        noise=noise_of(settings),
        norm=privacy.update_norm,
        rate=settings.federation.client_fraction,
        key=key,
        clipping=privacy.clipping,
        side=privacy.side,
        metrics=privacy.metrics,
        quantile=privacy.norm_quantile,
        norm_rate=privacy.norm_rate,
    )


def _accounted(messages: Iterable[Message]) -> list[Message]:
    """Return a strategy's own questions; FedMoEError for those whose answers no budget covers."""
    asked = list(messages)
    if any(message.metadata.message_type.partition(".")[0] != "query" for message in asked):
        raise FedMoEError("privacy: the strategy asks clients beside the round, which no budget covers: leave one out")
    return asked
