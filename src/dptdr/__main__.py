"""``python -m dptdr`` is the ``dptdr`` command."""

from dptdr.cli import main

if __name__ == "__main__":
    main()
