"""Look at images before training on them: `tutelage data`."""

from tutelage.pipeline.doctor.command import check_data

__all__ = ["check_data"]
