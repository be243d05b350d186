"""Figures of the study: functions of plain data or of the study's frames that return a matplotlib figure."""
