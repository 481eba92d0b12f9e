"""Counts of n-grams: exact, without hashing, in memory that doesn't depend on the alphabet."""
