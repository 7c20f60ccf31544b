"""The small model in which parts of it are tried out, and what experts and backbones are asked alike.

Shapes: B windows, L positions, N candidates, D hidden size, V items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedmoe.check.command import Broken, global_chance, in_words
from fedmoe.errors import FedMoEError
from fedmoe.settings import ModelSettings
from model.experts import Memory, window_memory
from model.residual_moe import ResidualMoE
from model.sasrec import FixedFeatures
from model.stacked import StackedModel
from model.values import Modality

Module = TypeVar("Module", bound=nn.Module)
ITEMS, LENGTH, WIDTH = 40, 6, 5
WITHOUT = (6, 14)  # items that lack the modality
# Of two windows, with earlier items for the memory; the second user has met little. Only even items are in use, so that
# those that a client touches are renumbered.
CONTEXT = 2 * torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 13, 3, 4]])
CANDIDATES = 2 * torch.tensor([[14, 2, 12, 7, 15, 10, 1], [4, 13, 16, 3, 17, 5, 18]])
NEAR = 1e-5  # how far numbers may be apart that are the same but for the order of sums


def small_settings(**changes: object) -> ModelSettings:
    """Return the settings of the small model; without dropout, which is not what is looked at."""
    fields: dict[str, object] = {
        "dim": 8, "heads": 2, "attention_dim": 8, "blocks": 1, "max_seq_len": LENGTH, "memory_size": 6,
        "memory_refresh": 3, "dropout": 0.0, "gate_init": 0.5,
    }  # fmt: skip
    return ModelSettings.model_validate(fields | changes)


def small_features() -> FixedFeatures:
    """Return features of the items, of which some have none."""
    present = torch.arange(ITEMS + 1) > 0
    present[list(WITHOUT)] = False
    values = torch.randn(ITEMS + 1, WIDTH, generator=torch.Generator().manual_seed(3))
    return FixedFeatures((values * present.unsqueeze(1)).numpy(), present.numpy())


def small_table() -> Tensor:
    """Return item vectors ``[V + 1, D]``, the padding's 0."""
    table = torch.randn(ITEMS + 1, 8, generator=torch.Generator().manual_seed(4))
    table[0] = 0.0
    return table


def small_memory() -> Memory:
    """Return the memory of the windows."""
    return window_memory(CONTEXT, LENGTH, size=6, refresh=3)


@contextmanager
def chance(torchs: int, others: int) -> Iterator[None]:
    """Within the block torch's global generator has one seed, NumPy's and Python's another one."""
    with global_chance(others), torch.random.fork_rng(devices=[]):
        torch.manual_seed(torchs)
        yield


def seeded(make: Callable[[], Module], others: int = 0) -> Module:
    """Return a module as after some training: every part of it has something to say. In evaluation mode."""
    with chance(1, others):
        module = make()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def far(one: Tensor, other: Tensor) -> float:
    """Return the largest difference where it is more than that of sums in another order, else 0."""
    if not (difference := (one - other).detach().abs()).numel():
        return 0.0
    largest, size = float(difference.max()), float(one.detach().abs().max())
    return 0.0 if largest <= NEAR * (1.0 + size) else largest


def follows_from_the_seed(make: Callable[[], Module], say: Callable[[Module], Tensor]) -> str:
    """Whether a module and what it says depend on the run's seed alone. say: returns what a module says."""
    one, other = (seeded(make, others) for others in (0, 1))
    for (name, parameter), like in zip(one.named_parameters(), other.parameters(), strict=True):
        if not torch.equal(parameter, like):
            raise Broken(
                f"'{name}' begins with values from np.random or random: draw them with torch, whose generator is seeded"
            )
    said = []
    for torchs, others, training in ((0, 0, False), (1, 1, False), (0, 0, True), (0, 1, True)):
        one.train(training)
        with chance(torchs, others), torch.no_grad():
            said.append(say(one))
    if not torch.equal(said[0], said[1]):
        raise Broken("the same input gives different results in evaluation: no dropout where self.training is False")
    if not torch.equal(said[2], said[3]):
        raise Broken("a result depends on np.random or random: draw with torch, whose generator is seeded")
    return "parameters and results follow from torch's seed"


def gradients_arrive(module: nn.Module, said: Tensor) -> str:
    """Whether each parameter is trained by what a module said."""
    weights = torch.randn(said.shape, generator=torch.Generator().manual_seed(5))
    (said * weights).sum().backward()  # type: ignore[no-untyped-call]
    count = 0
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            raise Broken(f"no gradient reaches '{name}': use it without detach or no_grad, or leave it out")
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            raise Broken(f"the gradient of '{name}' is not finite")
        count += 1
    return f"of {count} parameters" if count else "there are no parameters"


def stacked_or_alone(settings: ModelSettings, modalities: Callable[[], Mapping[str, Modality]]) -> str:
    """Whether the model with a component stacks, and is then what each client's model is alone."""
    model = seeded(lambda: ResidualMoE(settings, ITEMS, modalities()))
    try:
        stack = StackedModel(model)
    except FedMoEError as error:
        return f"one by one on engine vectorized: {error}"
    clients, rows = 2, ITEMS + 1
    noise = torch.Generator().manual_seed(6)
    own = {
        name: torch.stack([each + 0.1 * torch.randn(each.shape, generator=noise) for _ in range(clients)]).detach()
        for name, each in model.named_parameters()
    }
    own["items.ids.weight"][:, 0] = 0.0

    def local(ids: Tensor) -> Tensor:
        return torch.cat([ids + (ids > 0) * client * rows for client in range(clients)])

    stack.load(own, torch.arange(rows).expand(clients, -1), windows=len(CONTEXT))
    stack.layers.eval()
    with torch.no_grad():
        try:
            found = stack(local(CONTEXT), LENGTH, local(CANDIDATES)).scores.view(clients, len(CONTEXT), LENGTH, -1)
        except Exception as error:
            return f"one by one on engine vectorized, where a stack fails: {in_words(error)}"
        for client in range(clients):
            mine = {name: each[client] for name, each in own.items()}
            alone = torch.func.functional_call(model, mine, (CONTEXT, LENGTH, CANDIDATES)).scores
            if by := far(*((each * (CONTEXT[:, -LENGTH:] > 0).unsqueeze(-1)) for each in (alone, found[client]))):
                raise Broken(
                    f"in a stack of clients the scores differ by {by:.3g}: call layers as they are, not their "
                    "weights, and do not mix windows"
                )
    return "in stacks on engine vectorized, with the same result"
