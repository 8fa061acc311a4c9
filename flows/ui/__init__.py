# SPDX-License-Identifier: Apache-2.0
"""Output of a run in the Prefect UI: artifacts, events and formatted values."""
