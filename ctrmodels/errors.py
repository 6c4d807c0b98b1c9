"""The errors a user can mend, each told in one line: where, which key, which value, and the remedy."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used as it is.

    The message is one line: ``WHERE: KEY = VALUE: PROBLEM; REMEDY``. A stage that meets it exits with
    status 2 and is not retried, since the same input would fail again.

    Args:
        where: the file, folder or section that holds the fault.
        key: the column, field, parameter or option at fault.
        value: what was found there.
        problem: why it cannot be used.
        remedy: what to do about it.
    """

    def __init__(self, where: object, key: str, value: object, problem: str, remedy: str) -> None:
        self.where, self.key, self.value = str(where), key, value
        self.problem, self.remedy = problem, remedy
        shown = " ".join(repr(value).split())
        if len(shown) > 120:
            shown = shown[:117] + "..."
        super().__init__(f"{where}: {key} = {shown}: {problem}; {remedy}")

    def __reduce__(self) -> tuple[type, tuple[str, str, object, str, str]]:
        return type(self), (self.where, self.key, self.value, self.problem, self.remedy)


class DataContractError(InputError):
    """The log breaks a promise its description makes (schema, labels, leakage, drift)."""


class RoleError(RuntimeError):
    """Rows of a role were asked for by code that may not read them."""
