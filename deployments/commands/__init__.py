# SPDX-License-Identifier: Apache-2.0
"""Commands of ``prefect-cometapi``, one module each."""
