"""``python sample.py RUN …`` is ``makemore sample RUN …``."""

from makemore.cli import main

if __name__ == "__main__":
    main("sample")
