# SPDX-License-Identifier: Apache-2.0
"""Batches: manifests, their rows, outcomes and results."""
