# SPDX-License-Identifier: Apache-2.0
"""Prefect blocks for the CometAPI API key and the ledger of generations."""

from .credentials import CometAPICredentials
from .ledger import GenerationLedger

__all__ = ["CometAPICredentials", "GenerationLedger"]

# Saved blocks and their code examples name the module of the class. It has to be the public one.
for _public in (CometAPICredentials, GenerationLedger):
    _public.__module__ = __name__
