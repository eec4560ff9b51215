"""The entry point of `cfgjax` and `python -m cfgjax`. Stop signals are handled before anything slow is imported."""

from typing import NoReturn

from cfgjax.base.exits import stop_at_once


def main() -> NoReturn:
    """Runs the command line and exits."""
    stop_at_once()

    from cfgjax.cli import main as cli

    cli.main()


if __name__ == "__main__":
    main()
