"""Conan: curate text pairs, mine negatives, train embedding models."""

__version__ = "0.1.0"
