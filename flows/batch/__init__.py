# SPDX-License-Identifier: Apache-2.0
"""Batch flow: one video for each row of a manifest."""
