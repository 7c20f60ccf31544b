"""``python -m benchmarks.attacks.sums [CONFIG] [key=value ...]``: what sums over cohorts tell of a user's history.

Secure aggregation hides updates and not their sums. The server knows who took part in which round, so over a run it can
regress the sums on the cohorts: ridge regression of the rows' updates, and of the counts of clients that touched a row,
with the mean update of all clients as what is expected of each. The attack may choose the ridge that serves it best.

All clients train on the first model. Each has ``--draws`` updates, which its rounds use in turn.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.clients import TABLE
from benchmarks.attacks.leaks import auc, norm, sign, touched
from benchmarks.runs import exit_status, job, sent_by
from benchmarks.tables import write_page
from data.registry import load_dataset
from data.sampling import generator, training_part
from fedmoe.loading import to_run_config
from fedmoe.settings import Settings
from fedmoe.wire import ROWS, pack
from fedmoe_client.learning.client import workbench
from fedmoe_server.report.report import table
from model.build import initial_arrays
from strategies import noise_for

RIDGES = (0.1, 1.0, 10.0, 100.0)
DELTA = 1e-5
Floats = NDArray[np.floating]
Update = tuple[NDArray[np.int64], NDArray[np.float32]]
"""The rows of the item table that a client touched, and how it changed them, ``[rows, D]``."""


@dataclass(frozen=True)
class Seen:
    """What the server sees of a run: who took part, ``[rounds, users]`` of 0 and 1, and the sums over these.

    changes: of the item table, ``[rounds, V + 1, D]``; counts: clients that touched each row, ``[rounds, V + 1]``.
    """

    cohorts: Floats
    changes: Floats
    counts: Floats


def run_of(updates: Sequence[Sequence[Update]], items: int, cohort: int, rounds: int, seed: int) -> Seen:
    """Return what the server sees of rounds with random cohorts; updates: of each user, which its rounds use in turn.

    items: V, without padding.
    """
    rng, users, width = generator(seed, "sums", cohort), len(updates), updates[0][0][1].shape[1]
    cohorts = np.zeros((rounds, users), np.float32)
    changes, counts = np.zeros((rounds, items + 1, width), np.float32), np.zeros((rounds, items + 1), np.float32)
    turns = np.zeros(users, np.int64)
    for number in range(rounds):
        for user in rng.choice(users, cohort, replace=False):
            rows, change = updates[user][turns[user] % len(updates[user])]
            changes[number, rows] += change
            counts[number, rows] += 1
            cohorts[number, user] = 1
            turns[user] += 1
    return Seen(cohorts, changes, counts)


def regressed(sums: Floats, cohorts: Floats, users: Sequence[int], ridge: float) -> Floats:
    """Return what each of some users adds to a sum, ``[len(users), ...]``, as ridge regression tells.

    sums: ``[rounds, ...]``. Without any evidence it is the mean of all clients.
    """
    flat = sums.reshape(len(sums), -1)
    mean, apart = flat.mean(axis=0), cohorts - cohorts.mean(axis=0)
    gram = apart.T @ apart + ridge * np.eye(apart.shape[1], dtype=apart.dtype)
    chosen = np.linalg.solve(gram, np.eye(len(gram), dtype=gram.dtype)[:, list(users)])
    found: Floats = mean / cohorts.sum(axis=1).mean() + (apart @ chosen).T @ (flat - mean)
    return found.reshape(len(users), *sums.shape[1:])


def scores_of(seen: Seen, users: Sequence[int], ridge: float, with_counts: bool) -> dict[str, Floats]:
    """Return by name how much speaks for each item having been met, ``[users, V]``."""
    rows = regressed(seen.changes, seen.cohorts, users, ridge)
    found = {score.__name__: np.stack([score(each[None])[1:] for each in rows]) for score in (norm, sign)}
    return found | ({"counts": regressed(seen.counts, seen.cohorts, users, ridge)[:, 1:]} if with_counts else {})


def aucs(scores: Floats, met: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the AUC over the items of a user, and over the users of an item, each in the mean; both ``[users, V]``.

    The second one is .5 for whoever knows how popular the items are and nothing of single users.
    """
    by_user = [auc(np.asarray(row), known) for row, known in zip(scores, met, strict=True)]
    some = [item for item in range(met.shape[1]) if 0 < met[:, item].sum() < len(met)]
    pairs = [int(met[:, item].sum()) * int((~met[:, item]).sum()) for item in some]
    by_item = [auc(np.asarray(scores[:, item]), met[:, item]) for item in some]
    return float(np.mean(by_user)), float(np.average(by_item, weights=pairs))


def best(seen: Seen, users: Sequence[int], met: NDArray[np.bool_], with_counts: bool) -> tuple[float, float]:
    """Return the largest AUC of each kind over scores and ridges."""
    found = [aucs(each, met) for ridge in RIDGES for each in scores_of(seen, users, ridge, with_counts).values()]
    return max(a for a, _ in found), max(b for _, b in found)


def noisy(seen: Seen, deviation: float, seed: int) -> Seen:
    """Return the sums of clients that add noise of this deviation together; no counts are sent then."""
    noise = generator(seed, "sums noise").standard_normal(seen.changes.shape, np.float32)
    return Seen(seen.cohorts, seen.changes + np.float32(deviation) * noise, seen.counts)


def clipped(update: tuple[Update, float], bound: float) -> Update:
    """Return an update cut to a norm, given that of the whole update, all parameters together."""
    (rows, change), length = update
    return rows, change * np.float32(min(1.0, bound / max(length, 1e-12)))


def main(words: Sequence[str]) -> int:
    """Attack and write the page; return the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.attacks.sums", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("settings", nargs="*", help="a YAML file or its name in configs/, then key=value")
    parser.add_argument("--cohorts", type=int, nargs="+", default=[20, 100, 600], help="clients of a round")
    parser.add_argument("--turns", type=int, default=35, help="rounds that a client takes part in, in the mean")
    parser.add_argument("--draws", type=int, default=8, help="updates that are computed of each client")
    parser.add_argument("--users", type=int, default=100, help="users whose histories are looked for")
    parser.add_argument("--epsilon", type=float, default=8.0, help="budget of the run with noise")
    parser.add_argument("--folder", type=Path, default=Path("runs/attacks"), help="where the page is written")
    return exit_status(lambda: _measure(parser.parse_args(words), shlex.join(words)))


def _measure(given: argparse.Namespace, words: str) -> None:
    settings = job(given.settings)
    known = load_dataset(settings).interactions
    updates = [_updates(settings, user, given.draws) for user in range(known.num_users)]
    users = np.sort(generator(settings.seed, "leak").choice(known.num_users, given.users, replace=False)).tolist()
    every = np.arange(1, known.num_items + 1)
    met = np.stack([np.isin(every, training_part(known.history(user))) for user in users])
    whole = [[update for update, _ in each] for each in updates]
    bound = settings.privacy.update_norm
    short = [[clipped(update, bound) for update in each] for each in updates]
    everyone = run_of(whole, known.num_items, known.num_users, 1, settings.seed)
    popular = aucs(np.tile(everyone.counts[0, 1:], (len(users), 1)), met)
    own = [run_of([whole[user]], known.num_items, 1, given.draws, settings.seed).changes for user in users]
    rows = [["single updates", "", "", *_shown(_of_single(own, met))], ["popularity", "", "", *_shown(popular)]]
    for cohort in given.cohorts:
        rounds = round(given.turns * known.num_users / cohort)
        seen = run_of(whole, known.num_items, cohort, rounds, settings.seed)
        rows.append([f"sums over {cohort}", str(rounds), "", *_shown(best(seen, users, met, True))])
        noise = noise_for(given.epsilon, DELTA, 1.0, rounds)
        seen = noisy(run_of(short, known.num_items, cohort, rounds, settings.seed), noise * bound, settings.seed)
        told = _shown(best(seen, users, met, False))
        rows.append([f"sums over {cohort}, epsilon {given.epsilon:g}", str(rounds), f"{noise:.1f}", *told])
        print(*rows[-2:], sep="\n", flush=True)
    titles = ["the server sees", "rounds", "noise multiplier", "AUC over a user's items", "AUC over an item's users"]
    head = f"# {settings.name}: what sums tell\n\n    python -m benchmarks.attacks.sums {words}"
    write_page(given.folder / "sums.md", head, [table(titles, rows)])


def _of_single(own: Sequence[Floats], met: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the largest AUC of each kind where the server sees the clients' own updates, ``[draws, V + 1, D]``."""
    found = [aucs(np.stack([score(each)[1:] for each in own]), met) for score in (touched, norm, sign)]
    return max(a for a, _ in found), max(b for _, b in found)


def _shown(found: tuple[float, float]) -> list[str]:
    return [f"{value:.3f}" for value in found]


def _updates(settings: Settings, user: int, draws: int) -> list[tuple[Update, float]]:
    """Return a client's updates of the item table in some rounds, each with the norm of the whole update."""
    bench, found = workbench(to_run_config(settings)), []
    sent = initial_arrays(settings, bench.dataset)
    packed = pack(sent)
    for number in range(1, draws + 1):
        trained = sent_by(bench, user, packed, number)
        rows = trained.get(TABLE + ROWS, np.arange(len(sent[TABLE])))
        before = sent | {TABLE: sent[TABLE][rows]}
        moved = {name: trained[name] - before[name] for name in sent if name in trained}
        length = float(np.sqrt(sum(float(np.square(each, dtype=np.float64).sum()) for each in moved.values())))
        found.append(((np.asarray(rows), moved[TABLE]), length))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
