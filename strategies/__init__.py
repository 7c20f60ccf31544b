"""What the server does with the clients' replies: Flower strategies, and wrappers around them.

Any Message-API strategy of Flower (``flwr.serverapp.strategy.Strategy``) works here unchanged. One's own is a subclass
in any importable module, named in the settings as ``federation.strategy: my_module:MyStrategy``::

    class MyStrategy(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            ...  # change the arrays
            return arrays, metrics

It sees the parameters that are shared in the round and nothing else; the wrappers add and keep the private ones, choose
the cohort, sort and check the replies. Nothing in this package has to be edited. See ``docs/strategies.md`` and the ten
lines of ``examples/strategies/server_step.py``; ``python -m strategies.check my_module:MyStrategy`` tries it out.

Usual order of the wrappers: ``Cohorts(PartialAggregation(OutlierClipping(ServerLearningRate(build_strategy(...)))))``;
with privacy, ``PrivateUpdates`` stands between the second and the third.
"""

from strategies.layers.cohort import Cohorts, sample_clients
from strategies.layers.context import RoundContext
from strategies.layers.guards import Refusal, check_metric_replies, check_train_replies
from strategies.layers.learning_rate import ServerLearningRate
from strategies.layers.outliers import Clipping, OutlierClipping, clippings
from strategies.layers.partial import PartialAggregation
from strategies.layers.reply_mean import ReplyMean, counts_of, needs_every_reply
from strategies.layers.schedule import AggregationSchedule
from strategies.layers.wrapper import Stateless, Wrapper, chain
from strategies.privacy.accounting import Release, epsilon_of, noise_for
from strategies.privacy.updates import PrivateUpdates
from strategies.rules.registry import STRATEGIES, WRAPPERS, build_strategy
from strategies.rules.robust_rows import RobustRows
from strategies.rules.row_wise import RowWise
from strategies.state import load_state_arrays, state_arrays

__all__ = [
    "STRATEGIES",
    "AggregationSchedule",
    "Clipping",
    "Cohorts",
    "OutlierClipping",
    "PartialAggregation",
    "PrivateUpdates",
    "Refusal",
    "ReplyMean",
    "RoundContext",
    "RowWise",
    "Release",
    "ServerLearningRate",
    "WRAPPERS",
    "RobustRows",
    "Stateless",
    "Wrapper",
    "build_strategy",
    "chain",
    "check_metric_replies",
    "check_train_replies",
    "counts_of",
    "clippings",
    "load_state_arrays",
    "needs_every_reply",
    "epsilon_of",
    "load_state_arrays",
    "noise_for",
    "sample_clients",
    "state_arrays",
]
