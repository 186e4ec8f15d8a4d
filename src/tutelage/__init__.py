"""Distil a big image classifier into the best small one, and prove it. Import the submodules you need.

`Predictor`, for deployed directories, is here too; it is imported when it is asked for, and never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.deploy.predictor import Predictor

__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Predictor":
        from tutelage.deploy.predictor import Predictor

        return Predictor
    if name == "__version__":
        from importlib.metadata import version

        return version("tutelage")
    raise AttributeError(f"module 'tutelage' has no attribute {name!r}")
