"""What only some connectors need, and not everyone has installed."""

from __future__ import annotations

from importlib import import_module

from rayflow.model.errors import PlanError


def needed(who: str, extra: str, *modules: str) -> None:
    """Raise PlanError saying what to install, unless these modules are there."""
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise PlanError(f"{who} needs {module}: pip install 'rayflow[{extra}]' ({error})") from error
