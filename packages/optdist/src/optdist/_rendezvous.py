# SPDX-License-Identifier: Apache-2.0
"""Where processes meet: a store of our own prefix for every start, on loopback unless told."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.rpc as rpc

from optdist._session import log, watch
from optdist.errors import WorkerLostError, WorkerTimeoutError

SCHEME = "optdist"
ENDED = "OPTDIST_ENDED"  # a file of the launcher: the ranks here that ended
SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
_starts = itertools.count()
_store: dist.Store | None = None
_kept: dict[tuple[str, int], dist.TCPStore] = {}  # a process may start RPC again, at the same place


def open_store(rank: int, world_size: int, seconds: float) -> dist.Store:
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
    tcp = _kept.get((address, port))
    if tcp is None:
        tcp = _kept[address, port] = _connected(address, port, world_size, serves, seconds)
    tcp.set_timeout(timedelta(seconds=seconds))
    generation = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _store = dist.PrefixStore(f"optdist/{generation}/{next(_starts)}", tcp)
    return _store


def _connected(
    address: str, port: int, world_size: int, serves: bool, seconds: float
) -> dist.TCPStore:
    options: dict[str, Any] = {"timeout": timedelta(seconds=seconds)}
    if serves:
        # Torch binds every interface; a socket of our own listens where the user said.
        listener = _listener(address, port)
        port = listener.getsockname()[1]
        options["master_listen_fd"] = listener.detach()
        if torch.__version__ < "2.9":
            options["use_libuv"] = False  # libuv of torch 2.6 takes no socket that listens already
    try:
        return dist.TCPStore(address, port, world_size, serves, wait_for_workers=False, **options)
    except dist.DistNetworkError as error:
        raise WorkerTimeoutError(
            f"auto_init_rpc: expected rank 0 at {address}:{port} within {seconds:g} s, got no "
            "answer; see its last output, or give a longer start_timeout"
        ) from error


def _listener(address: str, port: int) -> socket.socket:
    try:
        family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(where[:2], family=family, backlog=1024)
    except OSError as error:
        raise OSError(
            error.errno,
            f"auto_init_rpc: expected to listen at {address}:{port}, got: {error.strerror}; give "
            "an address of this host and a free port (MASTER_ADDR, MASTER_PORT; --master-addr, "
            "--master-port of optdist.launch)",
        ) from error


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


def names(store: dist.Store, rank: int, name: str, world_size: int, seconds: float) -> list[str]:
    """Tell the name of this process; return those of all, once all are here.

    Raises:
        WorkerTimeoutError: some did not come.
        WorkerLostError: one ended before, or the process that keeps the store is gone.
    """
    keys = [f"name/{other}" for other in range(world_size)]
    deadline = time.monotonic() + seconds
    try:
        store.set(f"name/{rank}", name)
        while not store.check(keys):
            if ended := [other for other in _ended() if not store.check([keys[other]])]:
                raise WorkerLostError(
                    f"auto_init_rpc: expected {world_size} processes, got none for ranks {ended}, "
                    "which ended before; see their last output"
                )
            if time.monotonic() > deadline:
                missing = [other for other, key in enumerate(keys) if not store.check([key])]
                raise WorkerTimeoutError(
                    f"auto_init_rpc: expected {world_size} processes within {seconds:g} s, got "
                    f"none for ranks {missing}; see their last output, or give a longer "
                    "start_timeout"
                )
            time.sleep(0.02)
        return [store.get(key).decode() for key in keys]
    except dist.DistNetworkError as error:
        _kept.clear()
        raise WorkerLostError(
            "auto_init_rpc: expected the process that keeps the store (rank 0 or the agent of "
            "torchrun), got a closed connection; start again"
        ) from error


def _ended() -> list[int]:
    """Return the ranks of this host whose processes ended, as far as a launcher tells."""
    number, _, inode = os.environ.get(ENDED, "").partition(":")
    try:
        if not number or os.fstat(int(number)).st_ino != int(inode):
            return []
        return [int(word) for word in os.pread(int(number), 1 << 16, 0).split()]
    except OSError:  # closed: this program was started by a worker, and is none
        return []


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Bound the start of RPC, in which torch waits half an hour for a process that died.

    Raises:
        WorkerLostError: a process went away meanwhile.
    """
    before = rpc.constants.DEFAULT_PROCESS_GROUP_TIMEOUT
    rpc.constants.DEFAULT_PROCESS_GROUP_TIMEOUT = timedelta(seconds=seconds)
    try:
        yield
    except RuntimeError as error:
        watchdog = watch("a process that starts")
        if rpc.api._is_current_rpc_agent_set():
            rpc.shutdown(graceful=False)
        watchdog.cancel()
        raise WorkerLostError(
            f"auto_init_rpc: expected all processes to connect within {seconds:g} s, got an error "
            f"({str(error).splitlines()[0]}); see the last output of the others"
        ) from error
    finally:
        rpc.constants.DEFAULT_PROCESS_GROUP_TIMEOUT = before


def is_loopback(address: str) -> bool:
    """Tell whether a name or address stays on this machine."""
    found = socket.getaddrinfo(address, None)
    return all(ipaddress.ip_address(entry[4][0].split("%")[0]).is_loopback for entry in found)


def choose_interface() -> None:
    """Let TensorPipe and Gloo listen where this process meets the others, and nowhere else.

    On loopback if the store is there or torchrun has all processes on this host; else on the
    interface that leads to the store. Variables that are set count more.
    """
    address = os.environ["MASTER_ADDR"]
    one_host = is_loopback(address) or _is_alone_here()
    if one_host:
        found = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    else:
        found = _interface_to(address)
    for variable in ("TP_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        if found is not None:
            os.environ.setdefault(variable, found)
    if not one_host and os.environ.get("RANK", "0") == "0":
        log.warning(
            "optdist listens on a network (MASTER_ADDR=%s, interface %s): whoever reaches its "
            "ports can run code here; use trusted networks only",
            address,
            os.environ.get("TP_SOCKET_IFNAME", "of the host's name"),
        )


def _is_alone_here() -> bool:
    local = os.environ.get("LOCAL_WORLD_SIZE")
    return local is not None and local == os.environ.get("WORLD_SIZE")


def _interface_to(address: str) -> str | None:
    """Name the interface on the way to an address (Linux); ``None`` where it cannot be told."""
    if not sys.platform.startswith("linux"):
        return None
    import fcntl

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing: it only finds the way
            mine = socket.inet_aton(probe.getsockname()[0])
            for _, name in socket.if_nameindex():
                question = struct.pack("256s", name.encode())
                try:
                    found = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, question)[20:24]
                except OSError:  # an interface without an address
                    continue
                if found == mine:
                    return name
    except OSError:  # no IPv4 way there
        pass
    return None


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
