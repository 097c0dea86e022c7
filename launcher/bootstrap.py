# SPDX-License-Identifier: Apache-2.0
"""The plugin's import system: the modules that are in the executable, and no others.

Frozen in the place of importlib._bootstrap, which takes a sixth of CPython's core start to set up,
and then asks three finders for each module. CPython's C half calls the functions below by these
names, the last two only for what sys.modules cannot answer.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType
    from typing import Any

    _imp: Any
    _modules: dict[str, ModuleType]
    _Module: type[ModuleType]


def _install(sys: ModuleType, imp: ModuleType) -> None:
    global _imp, _modules, _Module
    _imp = imp
    _modules = sys.modules
    _Module = type(sys)
    _modules["_imp"] = imp


class _Spec:
    """What _imp.create_builtin() asks of a ModuleSpec."""

    def __init__(self, name: str) -> None:
        self.name = name


def _find_and_load(name: str, _import: object) -> ModuleType:
    package, _, last = name.rpartition(".")
    if package and package not in _modules:
        _find_and_load(package, _import)
        if name in _modules:  # the package has imported it
            return _modules[name]
    if _imp.is_builtin(name):
        module: ModuleType = _imp.create_builtin(_Spec(name))
        _modules[name] = module
        _imp.exec_builtin(module)
    elif _imp.is_frozen(name):
        module = _Module(name)
        module.__package__ = package
        if _imp.is_frozen_package(name):
            module.__package__ = name
            module.__path__ = []
        _modules[name] = module
        try:
            exec(_imp.get_frozen_object(name), module.__dict__)  # noqa: S102
        except BaseException:
            del _modules[name]
            raise
    elif name == "encodings":
        # Decoding what is not UTF-8 looks up how to report that, and CPython imports this first.
        # The reports and the codecs the plugin uses are all in C: nothing has to be in it.
        module = _modules[name] = _Module(name)
    else:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    if package:
        setattr(_modules[package], last, module)
    return module


def _handle_fromlist(package: ModuleType, names: Iterable[str], _import: object) -> ModuleType:
    for name in names:
        if not hasattr(package, name):
            _find_and_load(f"{package.__name__}.{name}", _import)
    return package
