"""Exhaustive search over states and edges: defects, fair infinite outcomes, shortest lassos, monitor sets."""
