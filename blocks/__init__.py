# SPDX-License-Identifier: Apache-2.0
"""What a user configures in Prefect: the key to CometAPI, and the ledger of what was bought."""

from .credentials import CometAPICredentials
from .ledger import GenerationLedger

__all__ = ["CometAPICredentials", "GenerationLedger"]

# A saved block and its code example name the class by its public place.
for _public in (CometAPICredentials, GenerationLedger):
    _public.__module__ = __name__
