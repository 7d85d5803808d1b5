"""Trained networks under test: alone and averaged, on one view of each image or on ten (paper, section 6)."""

from fourstage.evaluation.trained import Trained, load_trained

__all__ = ["Trained", "load_trained"]
