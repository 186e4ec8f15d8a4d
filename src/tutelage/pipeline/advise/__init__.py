"""Advice before a run: is distilling right for these images, and which student fits?"""

from tutelage.pipeline.advise.advice import Advice, Candidate
from tutelage.pipeline.advise.command import advise

__all__ = ["Advice", "Candidate", "advise"]
