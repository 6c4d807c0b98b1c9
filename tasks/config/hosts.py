"""The networks that searches work in."""

from __future__ import annotations

BASELINES = ("lr", "fm", "fwfm", "dnn", "deepfm", "ipnn", "dcnv2", "xdeepfm", "autoint", "fibinet", "din")
GATED_HOSTS = ("autodeepfm", "autoipnn")
HOSTS = (*GATED_HOSTS, *(name for name in BASELINES if name not in ("lr", "din")))
