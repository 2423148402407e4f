"""Counting the work of tensor operations."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Flops"]


class Flops(TorchDispatchMode):
    """Counts the floating-point operations of what runs inside, matrix products and the like.

    torch's ``FlopCounterMode`` follows modules too, by hooks on what they are called on, and a parameter with such
    a hook gets no gradient.

    Example:
        >>> with Flops() as flops:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> flops.total
        48
    """

    supports_higher_order_operators = True

    def __enter__(self) -> "Flops":
        from torch.utils.flop_counter import flop_registry

        self.formulas, self.total = flop_registry, 0
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        formula = self.formulas.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=found)
        return found
