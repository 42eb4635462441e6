"""The documented door to finding nodes."""

from agent.discovery import AsyncNodeDiscovery, NodeDiscovery

__all__ = ["AsyncNodeDiscovery", "NodeDiscovery"]
