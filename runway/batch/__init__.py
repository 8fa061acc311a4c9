# SPDX-License-Identifier: Apache-2.0
"""Batches of generations: manifests, their rows, outcomes and results."""
