# SPDX-License-Identifier: Apache-2.0
"""Sources of a request that lie in files and object stores: read, checked, and made sendable."""
