"""What the paper and the proposal claim, as numbers that verdicts are given by."""

MOST_PARAMETERS, MOST_BYTES, FEWER_MACS = 11.94e6, 33e6, 2.6
"""C3, C11 and C5."""
LOWER_LATENCY = (0.37, 0.44)
"""C6: the least and the most by which latency falls under the student's, as shares."""
KEPT_ACCURACY, OVER_TEACHER = 0.95, 3.0
"""C12 and C13: the least share of the teacher's accuracy, and times its speed."""
LOWER_MEMORY, MOST_MEMORY = 0.70, 200e6
"""C14: the least share by which memory falls, and the most bytes of its peak."""
