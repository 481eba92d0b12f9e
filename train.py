"""``python train.py FILE …`` is ``makemore train FILE …``."""

from makemore.cli import main

if __name__ == "__main__":
    main("train")
