# SPDX-License-Identifier: Apache-2.0
"""What a user configures once in Prefect."""

from .credentials import CometAPICredentials

__all__ = ["CometAPICredentials"]
