"""Invented landmarks, rendered from a seed, so that everything runs without a data set."""
