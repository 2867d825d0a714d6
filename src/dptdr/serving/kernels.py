"""Ordered linear layers, as the server uses them; they live in the model room."""

from dptdr.model.kernels import OrderedLinear, order_weights

__all__ = ["OrderedLinear", "order_weights"]
