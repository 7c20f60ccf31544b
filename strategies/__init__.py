"""What the server does with the clients' replies: Flower strategies, and layers around them.

Any Message-API strategy of Flower (``flwr.serverapp.strategy.Strategy``) works here unchanged. One's own is a subclass
in any importable module, named in the settings as ``federation.strategy: my_module:MyStrategy``::

    class MyStrategy(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            ...  # change the arrays
            return arrays, metrics

It sees the parameters that are shared in the round and nothing else; the layers around it add and keep the private
ones, choose the cohort, sort and check the replies. Nothing in this package has to be edited. ``docs/strategies.md``
says more, ``examples/strategies/server_step.py`` has the ten lines whole, and ``python -m strategies.check
my_module:MyStrategy`` tries a strategy out.

Usual order of the layers: ``Cohorts(PartialAggregation(OutlierClipping(ServerLearningRate(build_strategy(...)))))``;
with privacy, ``PrivateUpdates`` stands between the second and the third.
"""

from strategies.layers.course import Cohorts, ServerLearningRate, sample_clients
from strategies.layers.layer import AggregationSchedule, Layer, Round, Stateless, chain, weight_key
from strategies.layers.outliers import OutlierClipping
from strategies.layers.partial import PartialAggregation
from strategies.layers.replies import Clipping, Guard, Refusal
from strategies.layers.reply_mean import ReplyMean, counts_of
from strategies.needs import needs_every_reply
from strategies.privacy.accountant import Release, epsilon_of, noise_for
from strategies.privacy.ledger import PrivacyLedger, privacy_section, read_ledger, spent_before, sums_section
from strategies.privacy.rule import PrivateUpdates, noise_of, private, secret_of
from strategies.rules.registry import STRATEGIES, WRAPPERS, build_strategy
from strategies.rules.robust_rows import RobustRows
from strategies.rules.row_wise import RowWise
from strategies.state import load_state_arrays, state_arrays

__all__ = [
    "STRATEGIES",
    "WRAPPERS",
    "AggregationSchedule",
    "Clipping",
    "Cohorts",
    "Guard",
    "Layer",
    "OutlierClipping",
    "PartialAggregation",
    "PrivacyLedger",
    "PrivateUpdates",
    "Refusal",
    "Release",
    "ReplyMean",
    "RobustRows",
    "Round",
    "RowWise",
    "ServerLearningRate",
    "Stateless",
    "build_strategy",
    "chain",
    "counts_of",
    "epsilon_of",
    "load_state_arrays",
    "needs_every_reply",
    "noise_for",
    "noise_of",
    "privacy_section",
    "private",
    "read_ledger",
    "sample_clients",
    "secret_of",
    "spent_before",
    "state_arrays",
    "sums_section",
    "weight_key",
]
