"""Programs that a language model wrote: run behind a boundary, and judged by their tests."""
