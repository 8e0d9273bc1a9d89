"""Probabilities into scores, intervals, tables, a report and submissions."""
