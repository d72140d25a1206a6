"""How is it asked? Prompts, paths and tools around a language model, and how its answers are judged."""
