# SPDX-License-Identifier: Apache-2.0
"""Sources of a request in files and object stores: read, checked, and made sendable."""
