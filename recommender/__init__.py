"""The domain: datasets, the split, metrics, the evaluator, baselines and the student model. Imports no stage."""
