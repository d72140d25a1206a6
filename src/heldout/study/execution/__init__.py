"""How runs are made: in this process, in a process of their own under a supervisor, in several, or on Ray."""
