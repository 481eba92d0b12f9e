"""Plots of a trained model and automatic verdicts on them, one file per kind of plot."""
