# SPDX-License-Identifier: Apache-2.0
"""Requests that the sandbox accepts, and the replies and errors that it sends."""
