"""The encoded log: its schema, its rows by role, and the simulator of logs whose truth is known."""

from ctrmodels.data.dataset import PADDING, Batch, Dataset, Rows
from ctrmodels.data.schema import ROLES, Field, Objective, Role, Scale, Schema

__all__ = ["PADDING", "ROLES", "Batch", "Dataset", "Field", "Objective", "Role", "Rows", "Scale", "Schema"]
