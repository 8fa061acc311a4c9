# SPDX-License-Identifier: Apache-2.0
"""Steps of a generation as Prefect tasks: submit, poll, fetch, persist."""
