"""The benchmarks: one module a question or a family of them, peers side by side, results in `results/`."""
