"""The C code of context mixing in Python, for machines without a compiler; the reference it is tested against.

Functions have the names, and do the same as, those in ``position.h``, ``table.h``, ``mixing.h`` and ``engine.c``.
"""
