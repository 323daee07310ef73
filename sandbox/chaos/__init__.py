"""Faults on real servers and real processes under a live stream, and the proof that no play was lost or counted twice."""
