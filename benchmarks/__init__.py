"""Measurements whose numbers can be checked: each prints its environment and its baselines."""
