"""Tables, figures and claims, made from ``results/`` alone.

An arrow only points up: this package reads records and the paper's printed numbers, and imports
nothing but ``registry``, ``paths``, ``results``, ``provenance`` and ``errors`` of ``llm2vec``. It
never needs torch. ``python -m analysis.build`` regenerates everything that a reader sees.
"""
