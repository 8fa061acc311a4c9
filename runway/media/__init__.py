# SPDX-License-Identifier: Apache-2.0
"""Download and inspection of videos; a separate process without other access decodes them."""
