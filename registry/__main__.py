"""`python -m registry` and the console script `dagi-registry`."""

from registry.cli import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
