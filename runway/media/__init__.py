# SPDX-License-Identifier: Apache-2.0
"""Downloads and the checks of a video, in a process that can reach nothing else."""
