"""How well does an agent do: returns of runs, put together over tasks and seeds."""
