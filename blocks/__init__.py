# SPDX-License-Identifier: Apache-2.0
"""What a user configures in Prefect: the key to CometAPI, and the ledger of what was bought."""

from .credentials import CometAPICredentials
from .ledger import GenerationLedger

__all__ = ["CometAPICredentials", "GenerationLedger"]
