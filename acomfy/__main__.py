"""Run the command line: ``python -m acomfy``."""

from .cli import main

if __name__ == "__main__":
    main()
