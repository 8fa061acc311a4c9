# SPDX-License-Identifier: Apache-2.0
"""How it runs unattended and from a terminal: prefect.yaml and the command line."""
