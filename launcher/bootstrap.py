# SPDX-License-Identifier: Apache-2.0
"""The plugin's import system: the modules that are in the executable, and no others.

Frozen in the place of importlib._bootstrap, which takes a sixth of CPython's core start to set up.
CPython calls `_install`; from then on every import, of Python code or of C code, calls `_import`.
The C function it replaces looks for __path__ in what it has imported, which most modules lack, and
builds and drops two AttributeErrors each time: 10,000 instructions for `from errno import ENOENT`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType, SimpleNamespace
    from typing import Any

    _imp: Any
    _modules: dict[str, ModuleType]
    _Module: type[ModuleType]
    _Namespace: type[SimpleNamespace]


def _install(sys: Any, imp: ModuleType) -> None:
    global _imp, _modules, _Module, _Namespace
    _imp = imp
    _modules = sys.modules
    _modules["_imp"] = imp
    _Module = type(sys)
    _Namespace = type(sys.implementation)
    _modules["builtins"].__import__ = _import  # type: ignore[attr-defined]


def _import(
    name: str,
    importer: object = None,
    _locals: object = None,
    names: Sequence[str] | None = None,
    level: int = 0,
) -> ModuleType:
    """What `import a.b` (a) and `from a.b import c` (a.b) mean; the arguments of __import__."""
    if level:
        raise ImportError("no relative imports in the plugin")
    module = _modules.get(name) or _load(name)
    if not names:
        return _modules[name.partition(".")[0]] if "." in name else module
    attributes = module.__dict__
    if "__path__" in attributes:
        for each in names:
            if each not in attributes:
                _load(f"{name}.{each}")
    return module


def _load(name: str) -> ModuleType:
    package, _, last = name.rpartition(".")
    if package and package not in _modules:
        _load(package)
        if name in _modules:  # the package has imported it
            return _modules[name]
    if _imp.is_frozen(name):
        module = _Module(name)
        if _imp.is_frozen_package(name):
            module.__path__ = []
        _modules[name] = module
        try:
            exec(_imp.get_frozen_object(name), module.__dict__)  # noqa: S102
        except BaseException:
            del _modules[name]
            raise
    elif _imp.is_builtin(name):
        # All it asks of a ModuleSpec is the name, and a class of our own takes 45,000 instructions.
        module = _imp.create_builtin(_Namespace(name=name))
        _modules[name] = module
        _imp.exec_builtin(module)
    elif name == "encodings":
        # Decoding what is not UTF-8 looks up how to report that, and CPython imports this first.
        # The reports and the codecs the plugin uses are all in C: nothing has to be in it.
        module = _modules[name] = _Module(name)
    else:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    if package:
        setattr(_modules[package], last, module)
    return module
