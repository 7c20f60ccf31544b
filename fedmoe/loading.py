"""Fill the settings tree: a YAML file, then ``key=value`` words and ``--flags`` on top; every error at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from fedmoe.errors import FedMoEError, nearest
from fedmoe.execution_settings import SearchFile, SearchSettings, sweep_points
from fedmoe.modalities import SPELLINGS, ModalitySettings
from fedmoe.settings import Settings

CONFIGS = Path(__file__).parents[1] / "configs"
# Spellings of the reference document that differ from the name of the setting.
ALIASES = {
    "gating_init": "model.gate_init",
    "partial_aggregation_warmup_rounds": "federation.warmup_rounds",
} | {old.split(".")[-1]: new for old, new in SPELLINGS.items()}
MODALITIES = "modalities"
SEARCH = "search.yaml"  # in the folder of a search: what it was started with
MAPPINGS = ("_parameters", "item_columns")  # endings of settings whose entries are the user's own
DEPRECATED = {
    "init_bias_for_sasrec": "the router no longer weighs the backbone",
    "sasrec_bias_value": "the router no longer weighs the backbone",
}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-3 for a text, since it has no point; here it is the number that it looks like."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_settings(words: Sequence[str], values: Mapping[str, Any] | None = None) -> tuple[Settings, list[str]]:
    """Return the settings that the words of a command line describe, and warnings to print.

    words: at most one YAML file first (a path, or the name of a file in ``configs/``), then ``key=value``,
    ``--key value`` or ``--key=value``. A key is a full one (``model.dim``), or its last part where that is unique.
    values: further settings by such keys.

    Raises FedMoEError that lists every wrong key and value.
    """
    tree, problems, warnings = _tree_of(words)
    for key, value in (values or {}).items():
        if path := full_key(key, problems):
            _set(tree, path, value)
    return _validated(tree, problems), warnings


class Points(NamedTuple):
    """The runs that a command line describes.

    Attributes:
        settings: those of each run by its label; one run that is neither a sweep's nor a search's is labelled "".
        warnings: to print.
        search: how the runs are stopped early; None: they are not.
        tree: the file with the words on top, for a file to begin with them again.
    """

    settings: dict[str, Settings]
    warnings: list[str]
    search: SearchSettings | None
    tree: dict[str, Any]


def load_points(words: Sequence[str]) -> Points:
    """Return the settings of every run that the words of a command line describe.

    A YAML file with ``sweep:`` describes several runs that differ in some settings: a mapping of keys to lists of
    values means every combination, a list of mappings means these points, each of which may have a ``label``. One with
    ``search:`` describes trials, whose settings are drawn (``SearchSettings``). Without these there is one point.

    Raises FedMoEError as ``load_settings`` does, the errors of all points together.
    """
    described, problems, warnings = _tree_of(words)
    tree = {key: value for key, value in described.items() if key not in ("search", "sweep")}
    search = _search_of(described, problems)
    changes = search.draws() if search else sweep_points(described.get("sweep", {}), problems)
    points: dict[str, Settings] = {}
    for label, change in changes.items():
        own = deepcopy(tree)
        for key, value in change.items():
            if path := full_key(key, problems):
                _set(own, path, value)
        try:
            points[label] = _validated(own, [])
        except FedMoEError as error:
            problems.append(f"{label}: {error}" if label else str(error))
    if problems:
        raise FedMoEError(_joined(list(dict.fromkeys(problems))))
    return Points(points, warnings, search, described)


def points_of_run(folder: Path, words: Sequence[str] = ()) -> Points:
    """Return what a run, or a search, was started with, from its folder; words beside them are refused."""
    if not words and (folder / SEARCH).is_file():
        return load_points([str(folder / SEARCH)])
    return Points({"": settings_of_run(folder, words)}, [], None, {})


def _search_of(tree: dict[str, Any], problems: list[str]) -> SearchSettings | None:
    if "search" not in tree:
        return None
    if "sweep" in tree:
        problems.append("sweep and search are two ways to choose settings: leave one out")
    try:
        return SearchFile.model_validate({"search": tree["search"]}).search
    except ValidationError as error:
        problems += [_problem(detail, SearchFile) for detail in error.errors()]
        return None


def _tree_of(words: Sequence[str]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return the tree that a command line describes, not yet validated, what is wrong already, and warnings."""
    tree: dict[str, Any] = {}
    words = list(words)
    if words and not words[0].startswith("-") and "=" not in words[0]:
        tree = read_yaml(words.pop(0))
    problems: list[str] = []
    warnings: list[str] = []
    for key, text in _pairs(words, problems):
        if key in DEPRECATED:
            warnings.append(f"--{key} is accepted but does nothing: {DEPRECATED[key]}")
        elif key == "use_negative_sampling":
            on = text.strip().lower() not in ("false", "0", "no", "off")
            _set(tree, "training.loss", "sampled_softmax" if on else "softmax")
        elif path := full_key(key, problems):
            _set(tree, path, parse_value(text))
    return tree, problems, warnings


def read_yaml(name: str) -> dict[str, Any]:
    """Return the mapping in a YAML file, given by path or by its name in ``configs/``."""
    shipped = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    path = Path(name)
    if not path.is_file() and name in shipped:
        path = CONFIGS / f"{name}.yaml"
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except OSError as error:
        hint = nearest(path.stem, shipped) or f": the shipped ones are {', '.join(shipped)}"
        raise FedMoEError(f"cannot read the settings file '{name}' ({error.strerror}){hint}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FedMoEError(f"'{name}' is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise FedMoEError(f"'{name}' must hold a mapping of settings, not a {type(tree).__name__}")
    return tree


def settings_from(tree: dict[str, Any]) -> Settings:
    """Return the settings of a whole or partial tree; raises FedMoEError that lists every wrong key and value."""
    return _validated(tree, [])


def settings_of_run(run_dir: Path, words: Sequence[str] = ()) -> Settings:
    """Return the settings that a run was started with, from its folder; words beside them are refused."""
    if words:
        raise FedMoEError(f"--resume goes on with the settings of {run_dir}: leave out {' '.join(words)}")
    return settings_from(read_yaml(str(run_dir / "settings.yaml")))


def to_run_config(settings: Settings) -> dict[str, str]:
    """Return what travels to the Flower apps: the whole tree in one string."""
    return {"settings": settings.model_dump_json()}


def from_run_config(run_config: Mapping[str, Any]) -> Settings:
    """Return the settings of a Flower run.

    Its run config holds the whole tree (``settings``, as ``sim.py`` and the deployment commands send it), or what a
    person gave to ``flwr run``: ``config``, a YAML file's name, and ``overrides``, words of ``key=value``.
    """
    if whole := str(run_config.get("settings", "")):
        return settings_from(json.loads(whole))
    words = [str(run_config["config"])] if run_config.get("config") else []
    return load_settings(words + str(run_config.get("overrides", "")).split())[0]


def leaves(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full key and pydantic field of every setting, in the order of the tree.

    The keys of each modality are ``modalities.NAME.file`` and so on.
    """
    for name, field in section.model_fields.items():
        if prefix + name == MODALITIES:
            yield from leaves(ModalitySettings, f"{MODALITIES}.NAME.")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _pairs(words: list[str], problems: list[str]) -> Iterator[tuple[str, str]]:
    while words:
        word = words.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not equals and not word.startswith("--"):
            problems.append(f"'{word}' is no setting: write key=value or --key value")
            continue
        if not equals:
            next_is_value = words and not words[0].startswith("--") and (words[0].count("=") == 0)
            if not next_is_value and key not in DEPRECATED:
                problems.append(f"--{key} needs a value")
                continue
            text = words.pop(0) if next_is_value else "true"
        yield key.replace("-", "_"), text


def full_key(key: str, problems: list[str]) -> str | None:
    """Return the full key that a key stands for; None, and the problem, where it is unknown or ambiguous."""
    key = ALIASES.get(key) or SPELLINGS.get(key, key)
    if key.startswith(f"{MODALITIES}."):
        return _modality_key(key, problems)
    known = [name for name, _ in leaves() if not name.startswith(f"{MODALITIES}.")]
    matches = _matches(key, known)
    if len(matches) == 1:
        return matches[0]
    head, _, entry = key.rpartition(".")
    if head and (mappings := [name for name in _matches(head, known) if name.endswith(MAPPINGS)]):
        return f"{mappings[0]}.{entry}"
    if matches:
        problems.append(f"'{key}' is ambiguous: write {' or '.join(matches)}")
    else:
        problems.append(f"unknown key '{key}'{_nearest_key(key, known)}")
    return None


def _modality_key(key: str, problems: list[str]) -> str | None:
    """Check ``modalities.NAME``, ``modalities.NAME.file`` or ``modalities.NAME.expert_parameters.ARGUMENT``."""
    fields = ModalitySettings.model_fields
    _, _, *own = key.split(".")
    if not own or own[0] in fields and (len(own) == 1 or own[0].endswith("_parameters") and len(own) == 2):
        return key
    problems.append(f"unknown key '{key}'{nearest(own[0], fields)}: a modality has {', '.join(fields)}")
    return None


def _matches(key: str, known: list[str]) -> list[str]:
    return [name for name in known if name == key] or [name for name in known if name.split(".")[-1] == key]


def _nearest_key(key: str, known: list[str]) -> str:
    by_leaf = {name.split(".")[-1]: name for name in known} | {alias: alias for alias in ALIASES}
    return nearest(key, known) or nearest(key.split(".")[-1], by_leaf) or ": --help lists the keys"


def parse_value(text: str) -> Any:
    """Return what a text means in a settings file; the text itself where it means nothing."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, leaf = path.split(".")
    for section in sections:
        child = tree.get(section)
        tree[section] = tree = dict(child) if isinstance(child, dict) else {}
    tree[leaf] = value


def _validated(tree: dict[str, Any], problems: list[str]) -> Settings:
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        problems = problems + [_problem(detail) for detail in error.errors()]
    if problems:
        raise FedMoEError(_joined(problems))
    return settings


def _joined(problems: list[str]) -> str:
    counted = "a setting is wrong" if len(problems) == 1 else f"{len(problems)} settings are wrong"
    return f"{counted}: " + ("\n  " if len(problems) > 1 else "") + "\n  ".join(problems)


def _problem(detail: Any, section: type[BaseModel] = Settings) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest_key(key, [name for name, _ in leaves(section)])}"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(detail["input"], dict) or not key:
        return f"{key + ': ' if key else ''}{message}"
    return f"{key} = {detail['input']!r}: {message}"
