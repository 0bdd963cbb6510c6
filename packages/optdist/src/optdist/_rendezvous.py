# SPDX-License-Identifier: Apache-2.0
"""Where processes meet: a store of our own prefix for every start, on loopback unless told."""

from __future__ import annotations

import ipaddress
import itertools
import logging
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.rpc as rpc

SCHEME = "optdist"
MEETING_SECONDS = 120.0  # how long the first process waits for the last
log = logging.getLogger("optdist")
_starts = itertools.count()
_store: dist.Store | None = None


def open_store(rank: int, world_size: int) -> dist.Store:
    """Join the store at ``MASTER_ADDR:MASTER_PORT``; rank 0 serves it unless torchrun does.

    A restarted generation must not find the addresses of the one before, hence the prefix.
    """
    global _store
    address = os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = rank == 0 and not by_agent
    if "MASTER_PORT" not in os.environ and world_size > 1:
        raise ValueError(
            "auto_init_rpc: expected MASTER_PORT beside WORLD_SIZE > 1, got none; "
            "start with torchrun or `python -m optdist.launch`, or set it"
        )
    port = int(os.environ.get("MASTER_PORT", "0"))
    options: dict[str, Any] = {"timeout": timedelta(seconds=MEETING_SECONDS)}
    if serves:
        # Torch binds every interface; a socket of our own listens where the user said.
        family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(where[:2], family=family, backlog=1024)
        port = listener.getsockname()[1]
        options["master_listen_fd"] = listener.detach()
    tcp = dist.TCPStore(address, port, world_size, serves, wait_for_workers=False, **options)
    generation = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _store = dist.PrefixStore(f"optdist/{generation}/{next(_starts)}", tcp)
    return _store


def _meet(url: str, **_: Any) -> Iterator[tuple[dist.Store, int, int]]:
    """Hand torch the store that is open already (torch's form of a rendezvous)."""
    words = dict(part.split("=") for part in url.partition("?")[2].split("&"))
    if _store is None:
        raise RuntimeError("optdist: expected an open store; start RPC with auto_init_rpc")
    yield dist.PrefixStore("rpc", _store), int(words["rank"]), int(words["world_size"])


def register() -> None:
    """Make ``optdist://`` known to torch, once."""
    if SCHEME not in dist.rendezvous.__globals__["_rendezvous_handlers"]:
        dist.register_rendezvous_handler(SCHEME, _meet)


def is_loopback(address: str) -> bool:
    """Tell whether a name or address stays on this machine."""
    found = socket.getaddrinfo(address, None)
    return all(ipaddress.ip_address(entry[4][0].split("%")[0]).is_loopback for entry in found)


def keep_on_loopback() -> None:
    """Let TensorPipe and Gloo listen on the loopback interface too, if the store does."""
    if is_loopback(os.environ["MASTER_ADDR"]):
        names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
        for variable in ("TP_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
            for name in names:
                os.environ.setdefault(variable, name)
    elif os.environ.get("RANK", "0") == "0":
        log.warning(
            "optdist listens on a network (MASTER_ADDR=%s): whoever reaches its ports can run code "
            "here; use trusted networks only",
            os.environ["MASTER_ADDR"],
        )


def default_options() -> rpc.TensorPipeRpcBackendOptions:
    """TensorPipe over sockets: its shared-memory transport keeps a core busy per idle process."""
    # One channel instead of all: another opens 16 ports per process. GPUs need one of their own.
    channels = None if torch.cuda.is_available() else ["basic"]
    try:
        return rpc.TensorPipeRpcBackendOptions(_transports=["uv"], _channels=channels)
    except TypeError:  # a private keyword of torch: without it slower, not wrong
        log.warning(
            "optdist: this torch has no _transports option; idle workers may keep a core busy each"
        )
        return rpc.TensorPipeRpcBackendOptions()
