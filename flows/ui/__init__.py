# SPDX-License-Identifier: Apache-2.0
"""What a run shows in the Prefect UI: artifacts, events and formatted values."""
