# SPDX-License-Identifier: Apache-2.0
"""Command line and prefect.yaml, for runs from a terminal and for unattended runs."""
