"""Scripted experts for the robosuite tasks: privileged state in, delta OSC_POSE actions out, two styles per task."""
