"""Rewrites of a captured graph that compute the same, and of which the compiler makes more."""

import torch
from torch import fx

__all__ = ["rewrite"]

aten = torch.ops.aten


def rewrite(module: fx.GraphModule) -> None:
    """Rewrite a graph for a CPU, in place.

    A bias is added after its matrix product, where it joins the operations that follow; as an input
    of the product it is first copied to every row of the result, a pass over memory of its own.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> net = torch.nn.Linear(2, 3)
        >>> module = make_fx(lambda x: net(x))(torch.ones(4, 2))
        >>> rewrite(module)
        >>> [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
        ['aten.t.default', 'aten.mm.default', 'aten.neg.default', 'aten.sub.Tensor']
    """
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
        if node.kwargs:  # scaled
            continue
        bias, left, right = node.args
        with graph.inserting_before(node):
            product = graph.call_function(aten.mm.default, (left, right))
            # Not add, which the compiler would join to the product again. The rounding is the same.
            total = graph.call_function(aten.sub.Tensor, (product, graph.call_function(aten.neg.default, (bias,))))
        node.replace_all_uses_with(total)
        graph.erase_node(node)
    module.recompile()
