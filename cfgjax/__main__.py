"""The entry point of `cfgjax` and `python -m cfgjax`. Stop signals are handled before anything slow is imported."""

from cfgjax.exits import catch_stop_signals


def main():
    """Runs the command line and exits."""
    catch_stop_signals()

    from cfgjax import cli

    cli.main()


if __name__ == "__main__":
    main()
