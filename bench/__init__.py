"""Benchmarks: one file per question, each figure beside a baseline measured in the same run."""
