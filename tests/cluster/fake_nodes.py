"""Nodes for Ray's autoscaler that are processes of this host, of any size on paper."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class FakeNodes(FakeMultiNodeProvider):  # type: ignore[misc]  # Ray is not typed here
    """Ray's own provider for tests, which cannot start a node whose type names its memory: that is left to the node."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: dict[str, Any], labels: Any
    ) -> None:
        started = {name: amount for name, amount in resources.items() if name != "memory"}
        super()._create_node_with_resources_and_labels(node_config, tags, count, started, labels)
