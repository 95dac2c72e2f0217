"""The MQTT topics of a fleet: who listens where, and who speaks.

    <prefix>/node/<node>/command      requests to one node
    <prefix>/group/<group>/command    to the nodes of a group
    <prefix>/all/command              to all nodes
    <prefix>/work                     `start` for whichever node has room ($share/work/<prefix>/work)
    <prefix>/group/<group>/work       the same within a group
    <prefix>/reply/<anything>         replies, where the request's response topic says
    <prefix>/node/<node>/status       the node's status, retained; its last will says offline
    <prefix>/node/<node>/event/<kind> events

Node and group names are plain words, so no name reaches into another's topics. A request is the JSON of control.py.
"""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # a node, a group, the prefix
SHARE = "$share/work/"
HOPS = "hops"  # user property of a `start` that nodes without room have passed on
MOST_HOPS = 50


def command_of_node(prefix: str, node: str) -> str:
    return f"{prefix}/node/{node}/command"


def command_of_group(prefix: str, group: str) -> str:
    return f"{prefix}/group/{group}/command"


def command_of_all(prefix: str) -> str:
    return f"{prefix}/all/command"


def work(prefix: str, group: str = "") -> str:
    """Start requests for any node, or any of a group."""
    return f"{prefix}/group/{group}/work" if group else f"{prefix}/work"


def replies(prefix: str) -> str:
    """What every response topic begins with."""
    return f"{prefix}/reply/"


def status(prefix: str, node: str) -> str:
    return f"{prefix}/node/{node}/status"


def event(prefix: str, node: str, kind: str) -> str:
    return f"{prefix}/node/{node}/event/{kind}"


def may_reply_to(prefix: str, topic: object) -> bool:
    """Whether a response topic lies where replies go: a request must not make a node speak anywhere else."""
    return (
        isinstance(topic, str)
        and topic.startswith(replies(prefix))
        and len(topic) <= 256
        and not any(sign in topic for sign in "+#\0")
    )
