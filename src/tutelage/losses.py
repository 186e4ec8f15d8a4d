"""The losses by their public names: ``from tutelage.losses import KL, kl``."""

from tutelage.distillation.losses import *  # noqa: F403
from tutelage.distillation.losses import __all__ as __all__
