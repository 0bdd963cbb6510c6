# SPDX-License-Identifier: Apache-2.0
"""Bilevel training over several processes.

Layout. `world` (ranks, start and end of RPC), `_session` (who is here, who is lost),
`_rendezvous` (where processes meet), `launch` (starts workers that die alone). `parallel`
(`parallelize`): `_partition` splits arguments, `_program` writes a call as bytes, `_dispatch` gives
chunks to workers and takes results, through an `_engine` (`_ray` is one); `_chunk` runs one,
forward and backward; `_flat` and `_shared` carry parameters and gradients, `_reduce` puts results
together, `_report` tells what it took. `remote` (plain calls), `autograd` (gradients through them),
`errors`; `_waiting` (waits that hear signals).
"""

from importlib.metadata import version as _version

from torch.distributed import rpc as rpc

from optdist import autograd as autograd
from optdist._partition import TensorDimensionPartitioner as TensorDimensionPartitioner
from optdist._partition import batch_partitioner as batch_partitioner
from optdist._partition import dim_partitioner as dim_partitioner
from optdist._partition import exclusive_batch_partitioner as exclusive_batch_partitioner
from optdist._reduce import mean_reducer as mean_reducer
from optdist._reduce import sum_reducer as sum_reducer
from optdist._report import Report as Report
from optdist.autograd import backward as backward
from optdist.errors import WorkerLostError as WorkerLostError
from optdist.errors import WorkerTimeoutError as WorkerTimeoutError
from optdist.parallel import parallelize as parallelize
from optdist.parallel import parallelize_async as parallelize_async
from optdist.remote import remote_async_call as remote_async_call
from optdist.remote import remote_sync_call as remote_sync_call
from optdist.world import WorldInfo as WorldInfo
from optdist.world import auto_init_rpc as auto_init_rpc
from optdist.world import barrier as barrier
from optdist.world import default_worker_name_format as default_worker_name_format
from optdist.world import get_local_rank as get_local_rank
from optdist.world import get_local_world_size as get_local_world_size
from optdist.world import get_rank as get_rank
from optdist.world import get_worker_id as get_worker_id
from optdist.world import get_world_info as get_world_info
from optdist.world import get_world_rank as get_world_rank
from optdist.world import get_world_size as get_world_size
from optdist.world import not_on_rank as not_on_rank
from optdist.world import on_rank as on_rank
from optdist.world import rank_all as rank_all
from optdist.world import rank_non_zero_only as rank_non_zero_only
from optdist.world import rank_zero_only as rank_zero_only

__version__ = _version("optdist")


def is_available() -> bool:
    """Tell whether torch was built with RPC.

    Example:
        >>> is_available()
        True
    """
    return rpc.is_available()
