"""Command lines: train, evaluate, classifier, and what is done with a finished run.

This room may import from every other; none imports from it.
"""
