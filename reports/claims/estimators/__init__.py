"""Estimators by subject: what a claim's verdict is computed from, and how."""
