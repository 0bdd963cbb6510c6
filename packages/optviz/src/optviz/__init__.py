# SPDX-License-Identifier: Apache-2.0
"""See where the meta-gradient flows.

_capture     from live autograd functions to plain data (_functions: what one tells of itself)
_nodes, graph    that data and its answers         _statistics  what solvers tell of their work
scopes       which part of a program made a node   _instrument  the same of optimizers
_record, _recording   what happens to tensors while a program runs
_why, _paths          why a gradient is missing
_flow        how much gradient flows               _boxes, _fold    what a picture shows
_layout, _ranks  where                             _svg, _html, _dot, _text  pictures
_make_dot    as torchviz draws it                  layout.js, viewer.js, viewer.html  the page
"""

from importlib.metadata import version as _version

from optviz._capture import draw as draw
from optviz._flow import flow as flow
from optviz._instrument import instrument as instrument
from optviz._make_dot import make_dot as make_dot
from optviz._make_dot import resize_graph as resize_graph
from optviz._nodes import Edge as Edge
from optviz._nodes import Node as Node
from optviz._nodes import Saved as Saved
from optviz._nodes import Scope as Scope
from optviz._paths import Answer as Answer
from optviz._record import record as record
from optviz._why import why_no_grad as why_no_grad
from optviz.graph import Graph as Graph
from optviz.scopes import scope as scope

__version__ = _version("optviz")
