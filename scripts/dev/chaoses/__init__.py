"""One module per goal of chaos.py, each with GOAL, RUNS and ``run(runs, rng, folder) -> Outcome``."""
