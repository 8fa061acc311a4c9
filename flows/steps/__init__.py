# SPDX-License-Identifier: Apache-2.0
"""The steps of a generation as Prefect tasks: submit, poll, fetch, persist."""
