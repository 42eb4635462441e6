"""The documented door: `python3 -m tools.dagi_node_agent.bootstrap --role ... --registry-url URL`."""

import sys

from agent.bootstrap import NodeBootstrap
from agent.cli import app

__all__ = ["NodeBootstrap"]

if __name__ == "__main__":
    app(["bootstrap", *sys.argv[1:]])
