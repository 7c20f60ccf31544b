"""Components: a name in the settings, and the arguments beside it, become an object.

A name is either registered or ``package.module:Class`` for one's own. Strategies, experts and the like are kinds of
component; what is wrong with a component is reported at once, with the nearest names.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, get_type_hints

from fedmoe.errors import FedMoEError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """What components of one kind have in common.

    Attributes:
        setting: the setting that names the component, such as ``federation.strategy``.
        arguments: the setting that holds its arguments, such as ``federation.strategy_parameters``.
        base: the class that a component derives from.
        known: registered name -> class.
        defaults: argument -> value, set where the constructor takes the argument and the user did not give it.
    """

    setting: str
    arguments: str
    base: type[T]
    known: Mapping[str, type[T]]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def find(self, name: str) -> type[T]:
        """Return the class of a registered name or of ``package.module:Class``.

        Raises FedMoEError for a name that is not known, a module that cannot be imported, and a class that does not
        derive from ``base`` or lacks methods.
        """
        return self.known[name] if name in self.known else self._imported(name)

    def takes(self, name: str, given: Collection[str] = ()) -> dict[str, inspect.Parameter]:
        """Return the arguments of a component by name, without those ``given`` by the program itself."""
        parameters = inspect.signature(self.find(name)).parameters.values()
        by_name = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        return {key: parameter for key, parameter in by_name.items() if key not in given}

    def faults(self, name: str, arguments: Mapping[str, Any], given: Collection[str] = ()) -> list[str]:
        """Return what is wrong with the arguments of a component.

        given: names of the arguments that the program itself passes and the settings must not.
        """
        cls, named = self.find(name), self.takes(name, given)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls).parameters.values())
        faults = [
            f"unknown '{key}'{nearest(key, named)}"
            for key in arguments
            if key in given or (key not in named and not takes_any)
        ]
        filled = self.defaults.keys() | arguments.keys()
        faults += [f"'{key}' is missing" for key, p in named.items() if p.default is p.empty and key not in filled]
        return faults + _wrong_types(cls, arguments)

    def build(self, name: str, arguments: Mapping[str, Any], **given: Any) -> T:
        """Return the component ``name`` built with ``arguments`` and what the program gives.

        Raises FedMoEError with all faults of the arguments, or with what the constructor refuses.
        """
        cls, named = self.find(name), self.takes(name, given)
        if faults := self.faults(name, arguments, given):
            takes = ", ".join(named) or "none"
            raise FedMoEError(f"{self.arguments} of {name}: {'; '.join(faults)} (it takes {takes})")
        defaults = {key: value for key, value in self.defaults.items() if key in named}
        try:
            return cls(**defaults | dict(arguments) | given)
        except (TypeError, ValueError) as error:
            raise FedMoEError(f"{self.arguments} of {name}: {' '.join(str(error).split())}") from error

    def _imported(self, name: str) -> type[T]:
        where = f"{self.setting} '{name}'"
        module_name, colon, class_name = name.partition(":")
        if not (colon and module_name and class_name):
            raise FedMoEError(
                f"{where} is not known{nearest(name, self.known)}; "
                f"use one of {', '.join(self.known)}, or package.module:Class for one's own"
            )
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # the module is the user's: whatever its import raises, say which one and why
            raise FedMoEError(f"{where}: cannot import {module_name}: {type(error).__name__}: {error}") from error
        cls = getattr(module, class_name, None)
        if cls is None:
            raise FedMoEError(f"{where}: {module_name} has no '{class_name}'{nearest(class_name, vars(module))}")
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            base = f"{self.base.__module__}.{self.base.__qualname__}"
            raise FedMoEError(f"{where}: not a subclass of {base}, derive it from that class")
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
            raise FedMoEError(f"{where}: the methods {missing} are missing")
        return cls


def _wrong_types(cls: type, arguments: Mapping[str, Any]) -> list[str]:
    """Check numbers, texts and switches. YAML reads 1e-6 as text, which would fail at its first use only."""
    try:
        hints = get_type_hints(cls.__init__)  # type: ignore[misc]  # the constructor that the signature belongs to
    except (NameError, TypeError):
        return []  # hints that cannot be resolved check nothing
    faults = []
    for key, value in arguments.items():
        wanted = hints.get(key)
        if wanted is float and not (type(value) in (int, float) and math.isfinite(value)):
            hint = ", write 1.0e-6 for 1e-6" if isinstance(value, str) else ""
            faults.append(f"'{key}' must be a number, is {value!r}{hint}")
        elif wanted is int and type(value) is not int:
            faults.append(f"'{key}' must be a whole number, is {value!r}")
        elif wanted is bool and type(value) is not bool:
            faults.append(f"'{key}' must be true or false, is {value!r}")
        elif wanted is str and not isinstance(value, str):
            faults.append(f"'{key}' must be text, is {value!r}")
    return faults
