"""A device's data, under the name by which data functions import it."""

from ..protos.data import ClientData, Examples, Floats, Labels, client_data, load, resolve

__all__ = ["ClientData", "Examples", "Floats", "Labels", "client_data", "load", "resolve"]
