"""Plots of a trained model and automatic findings, one file per kind of plot."""
