# SPDX-License-Identifier: Apache-2.0
"""The flow that makes a video for each row of a manifest."""
