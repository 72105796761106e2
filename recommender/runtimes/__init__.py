"""Runtimes: one file, one way to run an exported graph, all with the `Recommender` contract. Light: no torch."""
