"""`python -m agent` and the console script `dagi-agent`."""

from agent.cli import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
