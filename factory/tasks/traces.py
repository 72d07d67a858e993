"""Traces of verifiers (`traces.jsonl`): a tree of messages, each with the ids that it adds, whose branches are rows.

Concatenated along a path from the root to a leaf, `token_ids` are the exact ids of that branch, and `mask` says which
of them the model sampled. `logprobs` and `reference_logprobs` have a number for each that it did, in their order.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator


class Node(BaseModel):
    """What a scorer needs of a node."""

    model_config = ConfigDict(extra="ignore")
    # its place among the nodes; None for a root
    parent: Annotated[int, Field(ge=0)] | None = None
    token_ids: list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]] = Field(default_factory=list)
    mask: list[bool] = Field(default_factory=list)

    @model_validator(mode="after")
    def _lengths_agree(self) -> "Node":
        if len(self.mask) != len(self.token_ids):
            raise ValueError(f"a mask of {len(self.mask)} entries for {len(self.token_ids)} token_ids")
        return self


NODES = TypeAdapter(list[Node])


def read_nodes(value: Any) -> list[Node]:
    """The nodes of a trace. Raises ValueError where they are none, or no tree."""
    nodes = NODES.validate_python(value)
    for number, node in enumerate(nodes):
        # a node is added after the one it follows, so there is no circle
        if node.parent is not None and node.parent >= number:
            raise ValueError(f"nodes.{number}.parent: {node.parent} does not stand before it")
    if not any(any(node.mask) for node in nodes):
        raise ValueError("no token of its nodes is sampled (mask)")
    return nodes


def leaves_of(nodes: Sequence[Node]) -> list[int]:
    """The last nodes of the branches on which something was sampled, in their order."""
    inner = {node.parent for node in nodes}
    leaves = [number for number in range(len(nodes)) if number not in inner]
    return [leaf for leaf in leaves if any(any(node.mask) for node in path_to(nodes, leaf))]


def path_to(nodes: Sequence[Node], leaf: int) -> list[Node]:
    """The nodes from a root to a leaf."""
    return [nodes[number] for number in places_to(nodes, leaf)]


def places_to(nodes: Sequence[Node], leaf: int) -> list[int]:
    """Where these nodes stand."""
    places: list[int] = []
    at: int | None = leaf
    while at is not None:
        places.append(at)
        at = nodes[at].parent
    return places[::-1]
