"""Accuracy, latency, throughput and memory of every variant, by one evaluator and one runner; one report."""
