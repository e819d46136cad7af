"""An hour of steady load, watched by Prometheus: does anything grow? A program (`make soak`), and a short test."""
